package record

import "crypto/tls"

// stock is the Layer over crypto/tls's own record layer.
type stock struct {
	mem *memConn
	tls *tls.Conn
}

func (s *stock) Seal(dst, plain []byte) ([]byte, error) {
	s.mem.begin(dst)
	var err error
	if len(plain) > 0 {
		_, err = s.tls.Write(plain)
	}
	return s.mem.end(), err
}

func (s *stock) Open(dst, src []byte) ([]byte, int, error) {
	s.mem.src = src
	for cap(dst)-len(dst) >= Room {
		n, err := s.tls.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		if _, empty := err.(errEmpty); empty {
			break
		}
		if err != nil {
			return dst, len(src), clarify(err)
		}
	}
	n := len(src) - len(s.mem.src)
	s.mem.src = nil
	return dst, n, nil
}

func (s *stock) CloseWrite(dst []byte) ([]byte, error) {
	s.mem.begin(dst)
	err := s.tls.CloseWrite()
	return s.mem.end(), err
}

func (s *stock) Pending() bool { return s.mem.pending() }

func (s *stock) State() tls.ConnectionState { return s.tls.ConnectionState() }
