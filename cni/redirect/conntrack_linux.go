package redirect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// conntrackCount says how many flows the namespace has.
	conntrackCount = "/proc/sys/net/netfilter/nf_conntrack_count"
	// maxForget bounds what one call forgets.
	maxForget = 1 << 17

	getConntrack, newConntrack, deleteConntrack = nl.IPCTNL_MSG_CT_GET, nl.IPCTNL_MSG_CT_NEW, nl.IPCTNL_MSG_CT_DELETE
	ctaID, ctaZone                              = 12, 18 // of enum ctattr_type
)

// flow is what conntrack knows of a connection, as far as it matters.
type flow struct {
	family    byte
	proto     byte
	status    uint32
	mark      uint32
	zone      uint16
	dstPort   uint16 // of the first packet
	answersBy uint16 // the port that the answers come from
	original  []byte // the tuple, as netlink has it
	id        []byte
}

// captured says whether a flow was redirected by our rules, or by Istio's.
func captured(f flow) bool {
	switch f.answersBy {
	case PortOutbound, PortInbound, PortDNS:
		return f.status&statusDstNAT != 0
	}
	return false
}

// waiting says whether the rules of c would be kept from a flow of a pod that had
// none: because nobody has answered yet, so that the next attempt to connect is still
// the same flow, which passed; or because it is DNS, whose flows live for as long as
// an application keeps asking.
func (c Config) waiting(f flow) bool {
	untranslated := f.status&(statusSrcNAT|statusDstNAT) == 0
	switch {
	case !untranslated || f.mark&MarkMask == MarkConn:
		return false
	case f.proto == unix.IPPROTO_TCP:
		return f.status&statusSeenReply == 0
	default:
		return c.DNS && f.proto == unix.IPPROTO_UDP && f.dstPort == portDNS && f.zone == 0
	}
}

// outlived lists, for a pod that is about to get its first rules, redirections from
// an earlier time, which would lead a connection on the same ports astray. Once the
// rules are there they could not be told from connections that those have captured,
// which are alive. In a pod that another mesh has redirected all of them are.
func (p place) outlived(ctx context.Context) ([]flow, error) {
	if none, err := p.tracksNothing(); none || err != nil {
		return nil, err
	}
	theirs, err := p.strangers(ctx)
	if err != nil || len(theirs) > 0 {
		return nil, err
	}
	return p.flows(ctx, captured)
}

// startAfresh is for a pod that has just got its first rules: what outlived it, and
// what they would be kept from, is forgotten; what others have open to it is not.
func (p place) startAfresh(ctx context.Context, c Config, outlived []flow) error {
	if err := p.drop(ctx, outlived); err != nil {
		return err
	}
	none, err := p.tracksNothing()
	if err != nil {
		return err
	}
	if !none {
		theirs, err := p.strangers(ctx)
		if err != nil || len(theirs) > 0 {
			return err
		}
		if err := p.forget(ctx, c.waiting); err != nil {
			return err
		}
	}
	p.trackInbound()
	return nil
}

// forget makes conntrack forget the flows that which says, so that their next
// packet is looked at anew.
func (p place) forget(ctx context.Context, which func(flow) bool) error {
	if none, err := p.tracksNothing(); none || err != nil {
		return err
	}
	found, err := p.flows(ctx, which)
	if err != nil {
		return err
	}
	return p.drop(ctx, found)
}

// flows lists those that which says. A kernel without conntrack, or that does not let
// us look, has none.
func (p place) flows(ctx context.Context, which func(flow) bool) (found []flow, err error) {
	n, err := openNetfilter(p.ns)
	if lacking(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer n.close()
	q := query{subsystem: unix.NFNL_SUBSYS_CTNETLINK, get: getConntrack, got: newConntrack}
	err = n.dump(ctx, q, func(msg []byte) bool {
		if f := readFlow(msg); which(f) {
			f.original, f.id = bytes.Clone(f.original), bytes.Clone(f.id)
			found = append(found, f)
		}
		return len(found) < maxForget
	})
	if lacking(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list conntrack: %w", err)
	}
	return found, nil
}

// drop deletes flows that were listed; one that is another by now stays.
func (p place) drop(ctx context.Context, list []flow) error {
	if len(list) == 0 {
		return nil
	}
	n, err := openNetfilter(p.ns)
	if err != nil {
		return err
	}
	defer n.close()
	for _, f := range list {
		if err := errors.Join(n.delete(f), ctx.Err()); err != nil {
			return fmt.Errorf("delete from conntrack: %w", err)
		}
	}
	return nil
}

// tracksNothing asks what is cheap: a dump goes through the flows of all
// namespaces to find ours.
func (p place) tracksNothing() (none bool, err error) {
	err = p.ns.Do(func() error {
		count, err := os.ReadFile(conntrackCount)
		none = err == nil && strings.TrimSpace(string(count)) == "0"
		return nil
	})
	return none, err
}

func readFlow(msg []byte) flow {
	attrs := msg[nl.SizeofNfgenmsg:]
	f := flow{
		family:   msg[0],
		status:   attributeUint32(attrs, nl.CTA_STATUS),
		mark:     attributeUint32(attrs, nl.CTA_MARK),
		original: attribute(attrs, nl.CTA_TUPLE_ORIG),
		id:       attribute(attrs, ctaID),
	}
	if v := attribute(attrs, ctaZone); len(v) == 2 {
		f.zone = binary.BigEndian.Uint16(v)
	}
	f.proto, _, f.dstPort = readTuple(f.original)
	_, f.answersBy, _ = readTuple(attribute(attrs, nl.CTA_TUPLE_REPLY))
	return f
}

func readTuple(tuple []byte) (proto byte, src, dst uint16) {
	for kind, v := range attributes(attribute(tuple, nl.CTA_TUPLE_PROTO)) {
		switch {
		case kind == nl.CTA_PROTO_NUM && len(v) == 1:
			proto = v[0]
		case kind == nl.CTA_PROTO_SRC_PORT && len(v) == 2:
			src = binary.BigEndian.Uint16(v)
		case kind == nl.CTA_PROTO_DST_PORT && len(v) == 2:
			dst = binary.BigEndian.Uint16(v)
		}
	}
	return proto, src, dst
}

// delete deletes this flow and no later one of the same addresses.
func (n *netfilter) delete(f flow) error {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|deleteConntrack, unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: n.s}}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: f.family})
	req.AddData(nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, f.original))
	req.AddData(nl.NewRtAttr(ctaID, f.id))
	if f.zone != 0 {
		req.AddData(nl.NewRtAttr(ctaZone, binary.BigEndian.AppendUint16(nil, f.zone)))
	}
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.ENOENT) { // it ended by itself
		return nil
	}
	return err
}
