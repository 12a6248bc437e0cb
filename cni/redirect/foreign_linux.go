package redirect

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// What begins the names of Istio's chains, in a pod of its ambient mesh and in a
// sidecar's, and of the nftables tables that its agent makes instead.
const (
	foreignChain = "ISTIO_"
	foreignTable = "istio-"
)

// stranger is a chain or a table of another mesh's.
type stranger struct {
	form   string // NameNFT, NameLegacy or NameNFTables
	family string // as nft says it
	table  string
	chain  string // "" is the whole table
}

func (s stranger) String() string {
	if s.chain == "" {
		return fmt.Sprintf("nftables %s %s", s.family, shown(s.table))
	}
	return fmt.Sprintf("%s %s %s", s.family, shown(s.table), shown(s.chain))
}

// lookForeign is Foreign, of any backend: what is there does not depend on it.
func lookForeign(l limits, ns *netns.NS) (found []string, err error) {
	err = l.visit(ns, "look for other meshes", "netlink", func(ctx context.Context, p place) error {
		all, err := p.strangers(ctx)
		for _, s := range all {
			found = append(found, s.String())
		}
		return err
	})
	return cutDiffs(found), err
}

// strangers lists what is another mesh's, without a program: the namespace may
// have been programmed by one that the host no longer has.
func (p place) strangers(ctx context.Context) (found []stranger, err error) {
	n, err := openNetfilter(p.ns)
	if err != nil && !lacking(err) {
		return nil, err
	}
	if err == nil {
		defer n.close()
		if found, err = n.strangers(ctx); err != nil {
			return nil, err
		}
	}
	legacy, err := legacyChains(p.ns)
	for _, c := range legacy {
		if strings.HasPrefix(c.name, foreignChain) {
			found = append(found, stranger{NameLegacy, c.family.String(), c.table, c.name})
		}
	}
	slices.SortFunc(found, func(a, b stranger) int { return strings.Compare(a.String(), b.String()) })
	return found, err
}

// strangers lists those in nftables, whoever made them.
func (n *netfilter) strangers(ctx context.Context) (found []stranger, err error) {
	for range maxReads {
		found = nil
		add := func(s stranger) bool {
			found = append(found, s)
			return len(found) <= maxDiffs
		}
		q := query{subsystem: unix.NFNL_SUBSYS_NFTABLES, get: unix.NFT_MSG_GETTABLE, got: unix.NFT_MSG_NEWTABLE}
		err = n.dump(ctx, q, func(msg []byte) bool {
			name := attributeString(msg[nl.SizeofNfgenmsg:], unix.NFTA_TABLE_NAME)
			return !strings.HasPrefix(name, foreignTable) || add(stranger{NameNFTables, nftFamily(msg[0]), name, ""})
		})
		if err == nil {
			q.get, q.got = unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN
			err = n.dump(ctx, q, func(msg []byte) bool {
				attrs := msg[nl.SizeofNfgenmsg:]
				name := attributeString(attrs, unix.NFTA_CHAIN_NAME)
				return !strings.HasPrefix(name, foreignChain) ||
					add(stranger{NameNFT, nftFamily(msg[0]), attributeString(attrs, unix.NFTA_CHAIN_TABLE), name})
			})
		}
		if !interrupted(err) {
			break
		}
	}
	if lacking(err) { // a kernel without nftables
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables: %w", err)
	}
	return found, nil
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
