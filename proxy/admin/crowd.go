package admin

import (
	"net"
	"net/netip"
	"slices"
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

// crowd is a listener that is open to all. Nobody has to wait there, which would keep
// others waiting: who comes gets the place of the oldest where there is none, of its own
// address, or of one that has more. A probe of kubelet's needs its place for a moment, and
// must not be kept away, by many addresses together or by somebody on the node's own, or
// the proxy is restarted with all its connections.
type crowd struct {
	net.Listener
	mu   sync.Mutex
	all  int
	next uint64
	from map[netip.Addr][]*visitor // in the order they came
}

func (l *crowd) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	v, loser := l.enter(c)
	if loser != nil {
		_ = loser.Close()
	}
	return v, nil
}

// enter gives c a place, and says who loses one, if anybody does.
func (l *crowd) enter(c net.Conn) (v *visitor, loser net.Conn) {
	var who netip.Addr
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		who = a.AddrPort().Addr().Unmap()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	own := l.from[who]
	var shorter []*visitor // by its oldest
	switch {
	case len(own) >= maxOfOne:
		shorter = own
	case l.all >= maxVisitors:
		if shorter = l.most(); len(shorter) <= len(own) {
			shorter = own
		}
	}
	if len(shorter) > 0 {
		loser = shorter[0].Conn
		l.remove(shorter[0])
	}
	if l.from == nil {
		l.from = make(map[netip.Addr][]*visitor)
	}
	l.all++
	l.next++
	v = &visitor{Conn: c, crowd: l, who: who, number: l.next}
	l.from[who] = append(l.from[who], v)
	return v, loser
}

// most are the visitors of the address that has most, or of the one with the oldest among
// those.
func (l *crowd) most() (most []*visitor) {
	for _, list := range l.from {
		if len(list) > len(most) || len(list) == len(most) && list[0].number < most[0].number {
			most = list
		}
	}
	return most
}

// remove takes v's place away, if it has one still.
func (l *crowd) remove(v *visitor) {
	list := l.from[v.who]
	i := slices.Index(list, v)
	if i < 0 {
		return
	}
	l.all--
	if list = slices.Delete(list, i, i+1); len(list) == 0 {
		delete(l.from, v.who)
		return
	}
	l.from[v.who] = list
}

// visitor is one connection of a crowd.
type visitor struct {
	net.Conn
	crowd  *crowd
	who    netip.Addr
	number uint64 // in the order they came
}

func (v *visitor) Close() error {
	err := v.Conn.Close()
	v.crowd.mu.Lock()
	defer v.crowd.mu.Unlock()
	v.crowd.remove(v)
	return err
}
