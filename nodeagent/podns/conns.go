package podns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
)

// maxConns bounds what is kept of one pod's connections.
const maxConns = 1 << 17

// ErrCannotEnd is returned (wrapped) where the kernel cannot end a connection for
// somebody else.
var ErrCannotEnd = errors.New("the kernel was built without INET_DIAG_DESTROY, so that only the application can end its connections; restart the pod")

// Conn is a TCP connection of a pod with somebody outside of it.
type Conn struct {
	Cookie  uint64         `json:"cookie"` // of the socket, never another's
	Local   netip.AddrPort `json:"local"`
	Remote  netip.AddrPort `json:"remote"`
	Inbound bool           `json:"inbound"`      // the pod listens on the local port
	V6      bool           `json:"v6,omitempty"` // the socket's family; its addresses may be IPv4's all the same
}

// Connections lists those that are alive, but for the proxy's and what it carries: those
// that are outside of the mesh. more is how many there are beyond a bound.
func Connections(ns *netns.NS) (all []Conn, more int, err error) {
	d, err := openDiag(ns)
	if err != nil {
		return nil, 0, err
	}
	defer d.close()
	own, err := addresses(ns)
	if err != nil {
		return nil, 0, err
	}
	listening := map[uint16]bool{}
	err = d.dump(listen, func(s socket) bool {
		listening[s.local.Port()] = true
		return true
	})
	if err != nil {
		return nil, 0, err
	}
	all, _, more, err = d.connections(own, listening)
	return all, more, err
}

// Carried counts the connections of a pod's application that some proxy has the other end
// of, as the kernel knows them: any proxy, the newest or one that was told to end.
func Carried(ns *netns.NS) (n int, err error) {
	d, err := openDiag(ns)
	if err != nil {
		return 0, err
	}
	defer d.close()
	own, err := addresses(ns)
	if err != nil {
		return 0, err
	}
	_, n, _, err = d.connections(own, nil)
	return n, err
}

// connections are a pod's with somebody outside of it, and how many a proxy carries.
func (d *diag) connections(own map[netip.Addr]bool, listening map[uint16]bool) (all []Conn, n, more int, err error) {
	proxys := carried{ends: map[[2]netip.AddrPort]bool{}, from: map[netip.AddrPort]bool{}}
	err = d.dump(underWay, func(s socket) bool {
		peer := s.remote.Addr()
		switch {
		case s.mark&redirect.MarkMask == redirect.MarkProxy:
			proxys.note(s)
		case peer.IsLoopback() || own[peer]:
		case len(all) == maxConns:
			more++
		default:
			all = append(all, Conn{s.cookie, s.local, s.remote, listening[s.local.Port()], s.v6})
		}
		return true
	})
	found := len(all)
	all = slices.DeleteFunc(all, proxys.has)
	return all, found - len(all), more, err
}

// carried are the connections of a pod's application with the proxy, by the proxy's ends.
type carried struct {
	ends map[[2]netip.AddrPort]bool // local and remote
	from map[netip.AddrPort]bool    // the application's, of what was captured on its way out
}

func (c carried) note(s socket) {
	c.ends[[2]netip.AddrPort{s.local, s.remote}] = true
	if s.local.Port() == redirect.PortOutbound { // the application's end says another address
		c.from[s.remote] = true
	}
}

func (c carried) has(conn Conn) bool {
	return c.ends[[2]netip.AddrPort{conn.Remote, conn.Local}] || !conn.Inbound && c.from[conn.Local]
}

// Alive returns those of the connections that have not ended.
func Alive(ns *netns.NS, conns []Conn) (alive []Conn, err error) {
	if len(conns) == 0 {
		return nil, nil
	}
	d, err := openDiag(ns)
	if err != nil {
		return nil, err
	}
	defer d.close()
	return d.alive(conns)
}

// End ends connections, both ends of which are told by a reset. Those that are left
// over are returned with the reason; a connection that ended by itself is none.
func End(ns *netns.NS, conns []Conn) (left []Conn, err error) {
	if len(conns) == 0 {
		return nil, nil
	}
	d, err := openDiag(ns)
	if err != nil {
		return conns, err
	}
	defer d.close()
	alive, err := d.alive(conns)
	if err != nil {
		return conns, err
	}
	var why error
	for _, c := range alive {
		if err := d.destroy(c); err != nil && why == nil {
			why = fmt.Errorf("podns: end the connection of %s with %s: %w", c.Local, c.Remote, err)
		}
		if errors.Is(why, ErrCannotEnd) {
			return alive, why
		}
	}
	if left, err = d.alive(alive); err != nil || len(left) == 0 {
		return left, err
	}
	if why == nil {
		why = fmt.Errorf("podns: %d connections do not end", len(left))
	}
	return left, why
}

func (d *diag) alive(conns []Conn) (alive []Conn, err error) {
	cookies := make(map[uint64]bool, len(conns))
	err = d.dump(underWay, func(s socket) bool {
		cookies[s.cookie] = true
		return true
	})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(conns), func(c Conn) bool { return !cookies[c.Cookie] }), nil
}

// addresses are a namespace's own.
func addresses(ns *netns.NS) (map[netip.Addr]bool, error) {
	var addrs []net.Addr
	err := ns.Do(func() (err error) {
		addrs, err = net.InterfaceAddrs()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("podns: addresses of %s: %w", ns.ID(), err)
	}
	own := map[netip.Addr]bool{}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own[ip.Unmap()] = true
			}
		}
	}
	return own, nil
}
