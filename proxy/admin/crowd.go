package admin

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Metrics and readiness are open to all: any pod of the cluster may connect there, and
// keep what it has connected. A connection costs some 30 KB on both sides of a proxy.
const (
	maxVisitors = 1024 // at a port
	maxOfOne    = 32   // of them from one address
	// Whoever asks has asked by then, and has read the answer.
	visitTime = 30 * time.Second
)

// crowd is a listener that is open to all. What goes beyond a bound is closed at once:
// who has to wait there would keep others waiting.
type crowd struct {
	net.Listener
	mu   sync.Mutex
	all  int
	from map[netip.Addr]int
}

func (l *crowd) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if v := l.enter(c); v != nil {
			return v, nil
		}
		_ = c.Close()
	}
}

// enter is nil for one too many.
func (l *crowd) enter(c net.Conn) *visitor {
	var who netip.Addr
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		who = a.AddrPort().Addr().Unmap()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= maxVisitors || l.from[who] >= maxOfOne {
		return nil
	}
	if l.from == nil {
		l.from = make(map[netip.Addr]int)
	}
	l.all++
	l.from[who]++
	return &visitor{Conn: c, left: sync.OnceFunc(func() { l.leave(who) })}
}

func (l *crowd) leave(who netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.from[who]--; l.from[who] == 0 {
		delete(l.from, who)
	}
}

// visitor is one connection of a crowd.
type visitor struct {
	net.Conn
	left func()
}

func (v *visitor) Close() error {
	err := v.Conn.Close()
	v.left()
	return err
}
