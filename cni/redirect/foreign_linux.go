package redirect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// foreignTable begins the names of the nftables tables that Istio's agent makes
// in a pod when it does without iptables, which cannot see them.
const foreignTable = "istio-ambient-"

// foreign looks for another mesh's chains in one variant of iptables.
func (s *session) foreign(ctx context.Context) (found []string, err error) {
	if s.name == NameLegacy {
		if used, err := legacyInUse(s.ns.Do); err != nil || !used {
			return nil, err
		}
	}
	for _, f := range s.families() {
		have, err := s.save(ctx, f)
		if err != nil {
			return nil, err
		}
		found = append(found, foreign(f, have)...)
	}
	return found, nil
}

// foreignTables looks for another mesh's tables of nftables' own.
func foreignTables(ctx context.Context, ns *netns.NS) (found []string, err error) {
	var s *nl.NetlinkSocket
	err = ns.Do(func() (err error) { // Subscribe opens where it is called
		s, err = nl.Subscribe(unix.NETLINK_NETFILTER)
		return err
	})
	if s != nil {
		defer s.Close()
	}
	if err == nil {
		timeout := unix.NsecToTimeval(netlinkTimeout.Nanoseconds())
		err = s.SetReceiveTimeout(&timeout)
	}
	if err != nil {
		return nil, fmt.Errorf("nfnetlink: %w", err)
	}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC})
	err = req.ExecuteIter(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, func(msg []byte) bool {
		if family, name := nftTable(msg); strings.HasPrefix(name, foreignTable) {
			found = append(found, fmt.Sprintf("nftables %s %s", nftFamily(family), shown(name)))
		}
		return ctx.Err() == nil && len(found) <= maxDiffs
	})
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP): // a kernel without nftables
		err = nil
	case err != nil:
		err = fmt.Errorf("list nftables: %w", err)
	}
	return found, errors.Join(err, ctx.Err())
}

// nftTable reads a message that describes a table: struct nfgenmsg (family,
// version, two bytes of resource) and attributes.
func nftTable(msg []byte) (family byte, name string) {
	if len(msg) < nl.SizeofNfgenmsg {
		return 0, ""
	}
	for attrs := msg[nl.SizeofNfgenmsg:]; len(attrs) >= unix.SizeofNlAttr; {
		size, kind := int(binary.NativeEndian.Uint16(attrs)), binary.NativeEndian.Uint16(attrs[2:])
		if size < unix.SizeofNlAttr || size > len(attrs) {
			break
		}
		if kind == unix.NFTA_TABLE_NAME {
			return msg[0], unix.ByteSliceToString(attrs[unix.SizeofNlAttr:size])
		}
		attrs = attrs[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(attrs)):]
	}
	return 0, ""
}

func nftFamily(family byte) string {
	switch family {
	case unix.NFPROTO_INET:
		return "inet"
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	}
	return fmt.Sprintf("family %d", family)
}
