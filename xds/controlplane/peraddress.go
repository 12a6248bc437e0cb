package controlplane

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// perAddress is a listener that closes what one address has beyond its share, before a
// word is exchanged: the share of the port that is everybody's would otherwise be one's who
// has proven nothing.
type perAddress struct {
	net.Listener
	most  int
	log   *slog.Logger
	lines *rate.Limiter

	mu   sync.Mutex
	open map[netip.Addr]int
}

// newPerAddress bounds a listener; most of zero is no bound.
func newPerAddress(l net.Listener, most int, log *slog.Logger) net.Listener {
	if most <= 0 {
		return l
	}
	return &perAddress{Listener: l, most: most, log: log, lines: rate.NewLimiter(rate.Limit(1.0/60), 3), open: make(map[netip.Addr]int)}
}

// Accept implements net.Listener.
func (l *perAddress) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := c.RemoteAddr().(*net.TCPAddr)
		if !ok {
			return c, nil // a Unix socket's clients are the owner's
		}
		from := tcp.AddrPort().Addr().Unmap().WithZone("")
		if l.take(from) {
			return &countedConn{Conn: c, end: sync.OnceFunc(func() { l.give(from) })}, nil
		}
		if l.lines.Allow() { // before it is closed: who sees that finds the line
			l.log.Warn("an address has too many connections, the next ones are closed: raise --connections-per-address if many proxies come from it", "listen", l.Addr().String(), "address", from, "most", l.most)
		}
		_ = c.Close() // nothing was said
	}
}

func (l *perAddress) take(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[from] >= l.most {
		return false
	}
	l.open[from]++
	return true
}

func (l *perAddress) give(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[from]--; l.open[from] == 0 {
		delete(l.open, from)
	}
}

// countedConn gives its place back when it is closed.
type countedConn struct {
	net.Conn
	end func()
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	defer c.end()
	return c.Conn.Close()
}
