package sockopt

import (
	"context"
	"net"
)

// FailListen makes Listen fail on one network ("tcp6") as the kernel would.
func (s *Sockets) FailListen(network string, err error) {
	real := s.listenTCP
	s.listenTCP = func(ctx context.Context, lc *net.ListenConfig, n, addr string) (net.Listener, error) {
		if n == network {
			return nil, err
		}
		return real(ctx, lc, n, addr)
	}
}
