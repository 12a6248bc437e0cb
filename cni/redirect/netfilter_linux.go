package redirect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// netfilter is a netlink socket to one namespace's netfilter, for reading.
type netfilter struct{ s *nl.NetlinkSocket }

func openNetfilter(ns *netns.NS) (*netfilter, error) { return openNetfilterIn(ns.Do) }

func openNetfilterIn(within func(func() error) error) (n *netfilter, err error) {
	n = &netfilter{}
	err = within(func() (err error) { // Subscribe opens where it is called
		n.s, err = nl.Subscribe(unix.NETLINK_NETFILTER)
		return err
	})
	if err == nil {
		timeout := unix.NsecToTimeval(netlinkTimeout.Nanoseconds())
		err = n.s.SetReceiveTimeout(&timeout)
	}
	if err != nil {
		n.close()
		return nil, fmt.Errorf("nfnetlink: %w", err)
	}
	return n, nil
}

func (n *netfilter) close() {
	if n.s != nil {
		n.s.Close()
	}
}

// query is what to ask of a subsystem of netfilter's.
type query struct {
	subsystem, get, got int
	family              byte
	attrs               []*nl.RtAttr
}

// dump hands every answer to fn, the header (struct nfgenmsg) included, until it
// returns false.
func (n *netfilter) dump(ctx context.Context, q query, fn func(msg []byte) bool) error {
	req := nl.NewNetlinkRequest(q.subsystem<<8|q.get, unix.NLM_F_DUMP)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: n.s}}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: q.family})
	for _, a := range q.attrs {
		req.AddData(a)
	}
	err := req.ExecuteIter(unix.NETLINK_NETFILTER, uint16(q.subsystem<<8|q.got), func(msg []byte) bool {
		return ctx.Err() == nil && len(msg) >= nl.SizeofNfgenmsg && fn(msg)
	})
	return errors.Join(err, ctx.Err())
}

// lacking says whether an error means that the kernel does not have what was
// asked for.
func lacking(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// interrupted says whether a dump was overtaken by a change.
func interrupted(err error) bool {
	return errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR)
}

// attributes walks through netlink attributes: their kinds, without the flags,
// and their values. What is broken ends it.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	const flags = unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofNlAttr || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&^flags, b[unix.SizeofNlAttr:size]) {
				return
			}
			b = b[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
		}
	}
}

// attribute returns the first of a kind.
func attribute(b []byte, kind uint16) []byte {
	for k, v := range attributes(b) {
		if k == kind {
			return v
		}
	}
	return nil
}

func attributeString(b []byte, kind uint16) string {
	return unix.ByteSliceToString(attribute(b, kind))
}

// attributeUint32 is a number in network order; what is not there is 0.
func attributeUint32(b []byte, kind uint16) uint32 {
	if v := attribute(b, kind); len(v) == 4 {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}
