package redirect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// trackedFor is how long conntrack remembers a connection of which it has seen
	// nothing, in seconds. It is the kernel's own time for those that it has.
	trackedFor  = 432000
	statusAlive = statusSeenReply | statusConfirmed | 1<<2 // and assured
	// Of enum ctattr_protoinfo and ctattr_protoinfo_tcp.
	tcpEstablished = 3
	tcpLiberal     = 0x08 // windows are not known
)

// track tells conntrack of the pod's connections that it knows nothing of. Istio's
// rules redirect whatever it takes for new, and the first packet of a silent
// connection from before would be.
func (p place) track(ctx context.Context) error {
	return p.eachConnection(func(n *netfilter, c connection) error {
		if err := errors.Join(n.track(c.local, c.remote), ctx.Err()); err != nil {
			return fmt.Errorf("tell conntrack of %s: %w", c.remote, err)
		}
		return nil
	})
}

// What trackInbound does at most: the pod waits for it.
const (
	maxInbound    = 1 << 14
	inboundWithin = time.Second
)

// trackInbound tells conntrack of the connections that others have made to a pod before
// it had rules of ours. The proxy connects to the application with a client's address,
// and the kernel, which sees no socket of ours on the client's ports, may choose one of
// them: a client's connection that conntrack knows goes on then, and the proxy has to
// take another port (see markRules); of one that it does not know, since nothing was
// sent on it for long, both ends would be lost. It is done as well as it can be: a pod
// is not kept from the mesh by what may never happen.
func (p place) trackInbound() {
	until := time.Now().Add(inboundWithin)
	left := maxInbound
	_ = p.eachConnection(func(n *netfilter, c connection) error {
		if !c.inbound {
			return nil
		}
		if left--; left < 0 || time.Now().After(until) {
			return errEnough
		}
		return n.track(c.local, c.remote)
	})
}

var errEnough = errors.New("enough")

// connection is one of the pod's that is under way.
type connection struct {
	local, remote netip.AddrPort
	inbound       bool // the pod listens on its port
}

// eachConnection calls fn for every TCP connection of the pod with others.
func (p place) eachConnection(fn func(*netfilter, connection) error) error {
	var h *netlink.Handle
	err := p.ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_INET_DIAG)
		return err
	})
	if err != nil {
		return fmt.Errorf("sock_diag: %w", err)
	}
	defer h.Close()
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		return fmt.Errorf("sock_diag: %w", err)
	}
	n, err := openNetfilter(p.ns)
	if err != nil {
		return err
	}
	defer n.close()
	var sockets []*netlink.Socket
	listens := map[uint16]bool{} // on any address, of either family: an IPv6 socket takes IPv4, too
	for _, f := range p.families() {
		some, err := h.SocketDiagTCP(uint8(f.af()))
		if err != nil && !interrupted(err) {
			return fmt.Errorf("list the %s connections: %w", f, err)
		}
		for _, s := range some {
			if s.State == netlink.TCP_LISTEN {
				listens[s.ID.SourcePort] = true
			}
		}
		sockets = append(sockets, some...)
	}
	for _, s := range sockets {
		local, remote := socketAddr(s.ID.Source, s.ID.SourcePort), socketAddr(s.ID.Destination, s.ID.DestinationPort)
		if !underWay(s.State) || remote.Addr().IsLoopback() {
			continue
		}
		c := connection{local, remote, listens[local.Port()]}
		if err := fn(n, c); err != nil {
			return err
		}
	}
	return nil
}

// underWay says whether a connection has begun and not ended.
func underWay(state uint8) bool {
	switch state {
	case netlink.TCP_ESTABLISHED, netlink.TCP_FIN_WAIT1, netlink.TCP_FIN_WAIT2, netlink.TCP_CLOSE_WAIT, netlink.TCP_LAST_ACK, netlink.TCP_CLOSING:
		return true
	}
	return false
}

func socketAddr(ip []byte, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// track adds a connection, unless it is known in either direction.
func (n *netfilter) track(local, remote netip.AddrPort) error {
	family := byte(unix.AF_INET)
	if local.Addr().Is6() {
		family = unix.AF_INET6
	}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|newConntrack, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: n.s}}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family})
	req.AddData(tuple(nl.CTA_TUPLE_ORIG, local, remote))
	req.AddData(tuple(nl.CTA_TUPLE_REPLY, remote, local))
	req.AddData(nl.NewRtAttr(nl.CTA_STATUS, binary.BigEndian.AppendUint32(nil, statusAlive)))
	req.AddData(nl.NewRtAttr(nl.CTA_TIMEOUT, binary.BigEndian.AppendUint32(nil, trackedFor)))
	info := nl.NewRtAttr(nl.CTA_PROTOINFO|unix.NLA_F_NESTED, nil)
	tcp := info.AddRtAttr(nl.CTA_PROTOINFO_TCP|unix.NLA_F_NESTED, nil)
	tcp.AddRtAttr(nl.CTA_PROTOINFO_TCP_STATE, []byte{tcpEstablished})
	for _, side := range []int{nl.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, nl.CTA_PROTOINFO_TCP_FLAGS_REPLY} {
		tcp.AddRtAttr(side, []byte{tcpLiberal, tcpLiberal})
	}
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func tuple(kind int, src, dst netip.AddrPort) *nl.RtAttr {
	from, to := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	if src.Addr().Is6() {
		from, to = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	t := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	ip := t.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil)
	ip.AddRtAttr(from, src.Addr().AsSlice())
	ip.AddRtAttr(to, dst.Addr().AsSlice())
	proto := t.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_TCP})
	proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, binary.BigEndian.AppendUint16(nil, src.Port()))
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, dst.Port()))
	return t
}
