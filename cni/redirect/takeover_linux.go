package redirect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// TakeOver puts c's rules in the place of those that Istio's agent has made for
// a pod of its ambient mesh, and says in which form they were, for GiveBack; ""
// is that there were none. The two agree on marks, ports and routes, and ours
// come first and theirs go then, so that no connection notices: what Istio's
// proxy carries it carries on, and what is new goes to whoever listens.
//
// What Takeable refuses is left alone, without a form. After an error with one
// both may be there, which does no harm; call it again, or GiveBack.
func TakeOver(b Backend, ns *netns.NS, c Config) (form string, err error) {
	form, were, err := lookTakeable(ns)
	if err != nil {
		return "", err
	}
	if err := b.Apply(ns, c); err != nil || form == "" {
		return form, err
	}
	l := defaultLimits()
	err = l.visit(ns, "remove Istio's rules", form, func(ctx context.Context, p place) error {
		return p.removeStrangers(ctx)
	})
	if err != nil && form == NameLegacy { // one family after the other
		err = errors.Join(err, l.visit(ns, "put Istio's rules back", form, func(ctx context.Context, p place) error {
			return p.completeLegacy(ctx, c, were)
		}))
	}
	return form, err
}

// Takeable says in which form Istio's rules are in a pod that could be taken over, ""
// where there are none, or why it cannot be: ErrNotAmbient, for one.
func Takeable(ns *netns.NS) (form string, err error) {
	form, _, err = lookTakeable(ns)
	return form, err
}

func lookTakeable(ns *netns.NS) (form string, all []stranger, err error) {
	err = defaultLimits().visit(ns, "look for Istio's rules", "netlink", func(ctx context.Context, p place) error {
		if all, err = p.strangers(ctx); err == nil {
			form, err = takeable(all)
		}
		if err == nil && form == NameLegacy {
			_, err = Named(NameLegacy)
		}
		return err
	})
	return form, all, err
}

// GiveBack puts Istio's rules for c in the place of ours, in the form in which
// TakeOver found them; "" is the backend's own. Routes, and what conntrack knows
// of connections, are left for Istio's use and those that the proxy carries.
func GiveBack(b Backend, ns *netns.NS, c Config, form string) error {
	r, ok := b.(interface{ release(*netns.NS) error })
	if !ok {
		return fmt.Errorf("redirect: the backend %s cannot give a pod back", b.Name())
	}
	if err := c.Validate(); err != nil {
		return err
	}
	if form == "" {
		form = b.Name()
	}
	write := (*place).writeIstioTables
	if form != NameNFTables {
		theirs, err := Named(form)
		if err != nil {
			return err
		}
		write = func(p *place, ctx context.Context, c Config) error {
			return theirs.(*iptables).writeIstioChains(ctx, p, c, nil)
		}
	}
	l := defaultLimits()
	err := l.visit(ns, "give back", form, func(ctx context.Context, p place) error {
		all, err := p.strangers(ctx)
		if err != nil || len(all) > 0 { // Istio's agent was here already
			return err
		}
		if err := p.routes.add(c); err != nil {
			return err
		}
		if err := p.track(ctx); err != nil {
			return err
		}
		return write(&p, ctx, c)
	})
	if err != nil {
		return err
	}
	return r.release(ns)
}

// release removes our rules and nothing else.
func (b *iptables) release(ns *netns.NS) error {
	return b.session(ns, "release", func(ctx context.Context, s *session) error { return s.clear(ctx) })
}

func (b *native) release(ns *netns.NS) error {
	return b.work(ns, "release", func(ctx context.Context, s *nativeSession) error { return s.clear(ctx) })
}

// writeIstioChains leaves out the tables that except says, if it is not nil.
func (b *iptables) writeIstioChains(ctx context.Context, p *place, c Config, except func(Table) bool) error {
	s := &session{b, *p}
	c, err := s.usable(c)
	if err != nil {
		return err
	}
	for _, f := range c.families() {
		doc := istioDocument(f, slices.DeleteFunc(istioRules(c), func(t Table) bool { return except != nil && except(t) }))
		if doc == "" {
			continue
		}
		if err := s.restore(ctx, f, doc); err != nil {
			return err
		}
	}
	return nil
}

// writeIstioTables makes the tables that Istio's agent makes without iptables:
// one for both families, with a chain on each hook that leads to another.
func (p *place) writeIstioTables(_ context.Context, c Config) error {
	c, err := p.usable(c)
	if err != nil {
		return err
	}
	return p.change(func(conn *nftables.Conn) error {
		chains := map[string]*nftables.Chain{}
		for _, t := range istioRules(c) {
			table := &nftables.Table{Name: istioNFT + t.Name, Family: nftables.TableFamilyINet}
			for _, own := range ownChains() {
				hung := chainOf(t.Name, own.builtin)
				if len(t.chain(own.name)) == 0 {
					continue
				}
				chain := chains[hung.name]
				if chain == nil {
					conn.AddTable(table)
					chain = istioChain(conn, table, hung)
					chains[hung.name] = chain
				}
				for _, r := range t.chain(own.name) {
					exprs, err := r.exprs(t.Family)
					if err != nil {
						return err
					}
					conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(onlyFamily(t.Family), exprs)})
				}
			}
		}
		return nil
	})
}

// istioChain makes a chain on a hook that leads to one for the rules, which it
// returns. Its priority is the usual one, where ours is one before.
func istioChain(conn *nftables.Conn, table *nftables.Table, hung baseChain) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	base := conn.AddChain(&nftables.Chain{
		Name: hung.hook, Table: table, Type: nftables.ChainType(hung.kind), Policy: &policy,
		Hooknum: hookOf(hung.hook), Priority: nftables.ChainPriorityRef(nftables.ChainPriority(hung.priority + 1)),
	})
	chain := conn.AddChain(&nftables.Chain{Name: "istio-" + hung.hook, Table: table})
	conn.AddRule(&nftables.Rule{Table: table, Chain: base, Exprs: []expr.Any{
		&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: chain.Name}}})
	return chain
}

// onlyFamily is a condition for tables of both families.
func onlyFamily(f Family) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register}, compare(false, []byte{f.nfproto()})}
}

// removeStrangers removes what is Istio's for its ambient mesh.
func (p place) removeStrangers(ctx context.Context) error {
	all, err := p.strangers(ctx)
	if err != nil {
		return err
	}
	if _, err := takeable(all); err != nil { // it has changed meanwhile
		return err
	}
	n, err := openNetfilter(p.ns)
	if err != nil {
		return err
	}
	defer n.close()
	var ways []wayIn
	legacy := false
	for _, s := range all {
		legacy = legacy || s.form == NameLegacy
		if s.form == NameNFT {
			more, err := n.waysInto(ctx, s)
			if err != nil {
				return err
			}
			ways = append(ways, more...)
		}
	}
	if legacy {
		return p.removeLegacyIstio(ctx)
	}
	return p.change(func(conn *nftables.Conn) error { return remove(conn, all, ways) })
}

// remove removes tables, and chains with the rules that lead to them.
func remove(conn *nftables.Conn, all []stranger, ways []wayIn) error {
	for _, w := range ways {
		if err := conn.DelRule(&nftables.Rule{Table: w.table, Chain: &nftables.Chain{Name: w.chain}, Handle: w.handle}); err != nil {
			return err
		}
	}
	for _, empty := range []bool{true, false} { // one chain may lead to another
		for _, s := range all {
			switch chain := (&nftables.Chain{Name: s.chain, Table: s.nftTable()}); {
			case s.form == NameNFT && empty:
				conn.FlushChain(chain)
			case s.form == NameNFT:
				conn.DelChain(chain)
			case empty:
				conn.DelTable(s.nftTable())
			}
		}
	}
	return nil
}

func (s stranger) nftTable() *nftables.Table {
	t := &nftables.Table{Name: s.table, Family: nftables.TableFamilyINet}
	for _, f := range []Family{IPv4, IPv6} {
		if s.family == f.String() {
			t.Family = nftables.TableFamily(f.nfproto())
		}
	}
	return t
}

// wayIn is a rule that leads to a chain from outside.
type wayIn struct {
	table  *nftables.Table
	chain  string
	handle uint64
}

// waysInto finds the rules that lead to a stranger's chain.
func (n *netfilter) waysInto(ctx context.Context, s stranger) (ways []wayIn, err error) {
	t := s.nftTable()
	for range maxReads {
		ways = nil
		q := query{subsystem: unix.NFNL_SUBSYS_NFTABLES, get: unix.NFT_MSG_GETRULE, got: unix.NFT_MSG_NEWRULE, family: byte(t.Family)}
		q.attrs = []*nl.RtAttr{nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(t.Name))}
		err = n.dump(ctx, q, func(msg []byte) bool {
			attrs := msg[nl.SizeofNfgenmsg:]
			from, handle := attributeString(attrs, unix.NFTA_RULE_CHAIN), attribute(attrs, unix.NFTA_RULE_HANDLE)
			if !strings.HasPrefix(from, foreignChain) && len(handle) == 8 && leads(attribute(attrs, unix.NFTA_RULE_EXPRESSIONS), s.chain) {
				ways = append(ways, wayIn{t, from, binary.BigEndian.Uint64(handle)})
			}
			return len(ways) <= maxDiffs
		})
		if !interrupted(err) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list the rules of nftables %s %s: %w", s.family, shown(s.table), err)
	}
	return ways, nil
}

// leads says whether a rule jumps or goes to a chain.
func leads(list []byte, chain string) bool {
	for _, e := range attributes(list) {
		if attributeString(e, unix.NFTA_EXPR_NAME) == "immediate" {
			verdict := attribute(attribute(attribute(e, unix.NFTA_EXPR_DATA), unix.NFTA_IMMEDIATE_DATA), unix.NFTA_DATA_VERDICT)
			if attributeString(verdict, unix.NFTA_VERDICT_CHAIN) == chain {
				return true
			}
		}
	}
	return false
}

// removeLegacyIstio needs that variant's programs.
func (p place) removeLegacyIstio(ctx context.Context) error {
	b, err := Named(NameLegacy)
	if err != nil {
		return err
	}
	s := &session{b.(*iptables), p}
	return s.edit(ctx, func(d *document, _ Family, have state) {
		for _, name := range tableNames() {
			d.clearOf(have.table(name), istioChains())
		}
	})
}

// completeLegacy writes Istio's tables for c anew that were there and have gone.
func (p place) completeLegacy(ctx context.Context, c Config, were []stranger) error {
	b, err := Named(NameLegacy)
	if err != nil {
		return err
	}
	now, err := p.strangers(ctx)
	if err != nil {
		return err
	}
	among := func(all []stranger, t Table) bool {
		return slices.ContainsFunc(all, func(s stranger) bool { return s.family == t.Family.String() && s.table == t.Name })
	}
	return b.(*iptables).writeIstioChains(ctx, &p, c, func(t Table) bool { return !among(were, t) || among(now, t) })
}
