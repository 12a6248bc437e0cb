package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/cni/redirect"
)

const (
	nftName        = redirect.NameNFTables
	nftTable       = "warren-probes"
	pods4          = "pods-v4"
	pods6          = "pods-v6"
	flows4         = "kubelet-v4"
	flows6         = "kubelet-v6"
	chainOut       = "output"
	chainPost      = "postrouting"
	flowLife       = 10 * time.Second // from one chain to the next is microseconds
	maxFlows       = 1 << 14
	elemsInMsg     = 100             // a message's attributes hold 64 KiB
	netlinkTimeout = 5 * time.Second // of each exchange
)

// nftPriority is before srcnat (100), where everybody else's translation is, so
// that no order among chains has to be kept.
func nftPriority() *nftables.ChainPriority { return nftables.ChainPriorityRef(90) }

// nft is the backend over netlink: one table of our own, without any program.
type nft struct{ place *place }

func (b *nft) name() string { return nftName }

func (b *nft) refuses(netip.Addr) string { return "" }

func (b *nft) generation() (uint32, bool) { return nftGeneration(b.place) }

// nftGeneration asks for the number of the namespace's rule set.
func nftGeneration(p *place) (n uint32, ok bool) {
	var s *nl.NetlinkSocket
	err := p.ns.Do(func() (err error) { // Subscribe opens where it is called
		s, err = nl.Subscribe(unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return 0, false
	}
	defer s.Close()
	timeout := unix.NsecToTimeval(netlinkTimeout.Nanoseconds())
	if err := s.SetReceiveTimeout(&timeout); err != nil {
		return 0, false
	}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil || len(msgs) != 1 || len(msgs[0]) < nl.SizeofNfgenmsg {
		return 0, false
	}
	attrs, err := nl.ParseRouteAttr(msgs[0][nl.SizeofNfgenmsg:])
	for _, a := range attrs {
		if a.Attr.Type == unix.NFTA_GEN_ID && len(a.Value) == 4 {
			return binary.BigEndian.Uint32(a.Value), err == nil
		}
	}
	return 0, false
}

// withNFT gives fn a connection of its own, in the place. What fn sends is
// sent from there too: the kernel counts the levels of cgroups from the sender's
// root.
func withNFT(ctx context.Context, p *place, fn func(*nftables.Conn) error) error {
	deadline := time.Now().Add(netlinkTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	return p.do(func() error {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(conn *mdnetlink.Conn) error {
			return conn.SetDeadline(deadline)
		}))
		if err != nil {
			return fmt.Errorf("nfnetlink: %w", err)
		}
		defer c.CloseLasting()
		return explainNFT(fn(c))
	})
}

func explainNFT(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("nftables refuses what is needed of it (NAT in inet tables came with Linux 5.2, cgroups with 5.13): %w", err)
	}
	return err
}

func table() *nftables.Table {
	return &nftables.Table{Name: nftTable, Family: nftables.TableFamilyINet}
}

func podSet(v6 bool) *nftables.Set {
	if v6 {
		return &nftables.Set{Table: table(), Name: pods6, KeyType: nftables.TypeIP6Addr, Comment: "addresses of pods in the mesh"}
	}
	return &nftables.Set{Table: table(), Name: pods4, KeyType: nftables.TypeIPAddr, Comment: "addresses of pods in the mesh"}
}

// flowSet holds the connections that kubelet is about to make. Whose a packet is
// can be asked in the output hook, but not where sources are translated.
func flowSet(v6 bool) *nftables.Set {
	name, addr := flows4, nftables.TypeIPAddr
	if v6 {
		name, addr = flows6, nftables.TypeIP6Addr
	}
	return &nftables.Set{
		Table: table(), Name: name, Dynamic: true, HasTimeout: true, Concatenation: true, Timeout: flowLife, Size: maxFlows,
		KeyType: nftables.MustConcatSetType(addr, nftables.TypeInetService, addr, nftables.TypeInetService),
	}
}

func chains() []*nftables.Chain {
	return []*nftables.Chain{
		{Table: table(), Name: chainOut, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter},
		{Table: table(), Name: chainPost, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftPriority()},
	}
}

// nftState is what there is of our table.
type nftState struct {
	there    bool
	sets     []string
	chains   map[string]*nftables.Chain
	comments map[string][]string // of each chain's rules
}

func readNFT(c *nftables.Conn) (s nftState, err error) {
	s = nftState{chains: map[string]*nftables.Chain{}, comments: map[string][]string{}}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return s, err
	}
	if s.there = slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == nftTable }); !s.there {
		return s, nil
	}
	sets, err := c.GetSets(table())
	if err != nil {
		return s, err
	}
	for _, set := range sets {
		s.sets = append(s.sets, set.Name)
	}
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return s, err
	}
	for _, ch := range all {
		if ch.Table.Name != nftTable {
			continue
		}
		s.chains[ch.Name] = ch
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return s, err
		}
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			s.comments[ch.Name] = append(s.comments[ch.Name], comment)
		}
	}
	return s, nil
}

// sound says whether sets and chains are those wanted, their rules aside.
func (s nftState) sound() (ds []drift) {
	if !s.there {
		return []drift{{text: "table inet " + nftTable + " is missing"}}
	}
	for _, name := range []string{pods4, pods6, flows4, flows6} {
		if !slices.Contains(s.sets, name) {
			ds = append(ds, drift{text: "set " + name + " is missing"})
		}
	}
	for _, want := range chains() {
		switch have := s.chains[want.Name]; {
		case have == nil:
			ds = append(ds, drift{text: "chain " + want.Name + " is missing"})
		case have.Type != want.Type || have.Hooknum == nil || *have.Hooknum != *want.Hooknum || have.Priority == nil || *have.Priority != *want.Priority:
			ds = append(ds, drift{text: "chain " + want.Name + " is at another hook"})
		}
	}
	return ds
}

func (b *nft) drift(ctx context.Context, r rules) (ds []drift, err error) {
	err = withNFT(ctx, b.place, func(c *nftables.Conn) error {
		s, err := readNFT(c)
		if err != nil {
			return err
		}
		ds = s.sound()
		want := nftRules(r)
		for _, ch := range chains() {
			var tags []string
			for _, n := range want[ch.Name] {
				tags = append(tags, n.tag)
			}
			if s.chains[ch.Name] != nil && !slices.Equal(s.comments[ch.Name], tags) {
				ds = append(ds, drift{text: fmt.Sprintf("chain %s has other rules than it should: %s", ch.Name, short(fmt.Sprint(s.comments[ch.Name])))})
			}
		}
		return nil
	})
	return ds, err
}

// apply is one transaction. Only a table that was made otherwise is made anew,
// members and all.
func (b *nft) apply(ctx context.Context, r rules) error {
	return withNFT(ctx, b.place, func(c *nftables.Conn) error {
		s, err := readNFT(c)
		if err != nil {
			return err
		}
		var keep map[netip.Addr]string
		if ds := s.sound(); s.there && len(ds) > 0 {
			if keep, err = nftMembers(c, s); err != nil {
				return err
			}
			c.DelTable(table())
			s = nftState{}
		}
		c.AddTable(table())
		for _, set := range []*nftables.Set{podSet(false), podSet(true), flowSet(false), flowSet(true)} {
			if slices.Contains(s.sets, set.Name) {
				continue
			}
			if err := c.AddSet(set, nil); err != nil {
				return err
			}
		}
		if err := addElements(c, keep); err != nil {
			return err
		}
		want := nftRules(r)
		for _, ch := range chains() {
			c.AddChain(ch)
			c.FlushChain(ch)
			for _, n := range want[ch.Name] {
				c.AddRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: n.exprs, UserData: userdata.AppendString(nil, userdata.TypeComment, n.tag)})
			}
		}
		return c.Flush()
	})
}

func (b *nft) members(ctx context.Context) (m map[netip.Addr]string, err error) {
	err = withNFT(ctx, b.place, func(c *nftables.Conn) error {
		s, err := readNFT(c)
		if err != nil {
			return err
		}
		m, err = nftMembers(c, s)
		return err
	})
	return m, err
}

func nftMembers(c *nftables.Conn, s nftState) (map[netip.Addr]string, error) {
	m := map[netip.Addr]string{}
	for _, v6 := range []bool{false, true} {
		set := podSet(v6)
		if !slices.Contains(s.sets, set.Name) {
			continue
		}
		elems, err := c.GetSetElements(set)
		if err != nil {
			return nil, err
		}
		for _, e := range elems {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				m[a] = e.Comment
			}
		}
	}
	return m, nil
}

func (b *nft) edit(ctx context.Context, put map[netip.Addr]string, drop []netip.Addr) error {
	return withNFT(ctx, b.place, func(c *nftables.Conn) error {
		s, err := readNFT(c)
		if err != nil {
			return err
		}
		have, err := nftMembers(c, s)
		if err != nil {
			return err
		}
		for a := range put { // an element cannot change, only go and come
			drop = append(drop, a)
		}
		for _, a := range drop {
			if _, ok := have[a]; !ok {
				continue
			}
			if err := c.SetDeleteElements(podSet(a.Is6()), []nftables.SetElement{{Key: a.AsSlice()}}); err != nil {
				return err
			}
		}
		if err := addElements(c, put); err != nil {
			return err
		}
		return c.Flush()
	})
}

func addElements(c *nftables.Conn, put map[netip.Addr]string) error {
	elems := map[bool][]nftables.SetElement{}
	for a, owner := range put {
		elems[a.Is6()] = append(elems[a.Is6()], nftables.SetElement{Key: a.AsSlice(), Comment: owner})
	}
	for v6, all := range elems {
		for part := range slices.Chunk(all, elemsInMsg) {
			if err := c.SetAddElements(podSet(v6), part); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *nft) remove(ctx context.Context) error {
	return withNFT(ctx, b.place, func(c *nftables.Conn) error {
		s, err := readNFT(c)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
			return nil // a kernel without nftables has no table of ours
		}
		if err != nil || !s.there {
			return err
		}
		c.DelTable(table())
		return c.Flush()
	})
}

// nftRule is a rule and the mark it is known by.
type nftRule struct {
	exprs []expr.Any
	tag   string
}
