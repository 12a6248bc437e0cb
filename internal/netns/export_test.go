package netns

// SocketWith is Socket with another setns.
func (n *NS) SocketWith(setns func(fd int) error, domain, typ, proto int) (fd int, err error) {
	home, err := homeFD()
	if err != nil {
		return -1, err
	}
	do := func(fn func() error) error { return n.do(entry{setns: setns, home: home}, fn) }
	return n.socket(do, domain, typ, proto)
}

// Setns is the real system call, for a seam that only sometimes differs.
func Setns(fd int) error { return setns(fd) }

// DoWith is Do with another setns.
func (n *NS) DoWith(setns func(fd int) error, fn func() error) (fnErr, nsErr error) {
	home, err := homeFD()
	if err != nil {
		return nil, err
	}
	return entry{setns: setns, target: int(n.f.Fd()), home: home}.visit(fn)
}
