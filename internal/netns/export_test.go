package netns

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
