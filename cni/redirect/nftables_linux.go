package redirect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"

	"github.com/warren-mesh/warren/internal/netns"
)

// native is the Backend over netlink. Its rules are in one table of ours in each
// family, and change in one transaction.
type native struct{ limits }

func (b *native) Name() string { return NameNFTables }

func (b *native) Apply(ns *netns.NS, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	return b.work(ns, "apply", func(ctx context.Context, s *nativeSession) error {
		c, err := s.usable(c)
		if err != nil {
			return err
		}
		return s.applied(ctx, c, func() (bool, error) { return s.apply(ctx, Rules(c)) })
	})
}

func (b *native) Verify(ns *netns.NS, c Config) (diffs []string, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	err = b.work(ns, "verify", func(ctx context.Context, s *nativeSession) error {
		c, err := s.usable(c)
		if err != nil {
			return err
		}
		if diffs, _, err = s.diff(ctx, Rules(c)); err != nil {
			return err
		}
		more, err := s.routes.diff(c)
		diffs = append(diffs, more...)
		return err
	})
	return cutDiffs(diffs), err
}

func (b *native) Remove(ns *netns.NS) error {
	return b.work(ns, "remove", func(ctx context.Context, s *nativeSession) error {
		return errors.Join(s.clear(ctx), s.cleared(ctx))
	})
}

func (b *native) StopCapture(ns *netns.NS) error {
	return b.work(ns, "stop capture", func(ctx context.Context, s *nativeSession) error { return s.stop(ctx) })
}

func (b *native) Foreign(ns *netns.NS) ([]string, error) { return lookForeign(b.limits, ns) }

// nativeSession is one call.
type nativeSession struct {
	place
	reader *netfilter
}

func (b *native) work(ns *netns.NS, what string, fn func(context.Context, *nativeSession) error) error {
	return b.visit(ns, what, NameNFTables, func(ctx context.Context, p place) error {
		n, err := openNetfilter(ns)
		if err != nil {
			return err
		}
		defer n.close()
		return fn(ctx, &nativeSession{p, n})
	})
}

// usable leaves IPv6 out where the kernel has none.
func (p place) usable(c Config) (Config, error) {
	c.IPv6 = c.IPv6 && p.routes.v6.kernel
	if !c.IPv4 && !c.IPv6 {
		return c, errors.New("only IPv6 is to be redirected, and the pod has none")
	}
	return c, nil
}

// diff says what differs, and whether anything of ours is there.
func (s *nativeSession) diff(ctx context.Context, tables []Table) (diffs []string, had bool, err error) {
	for _, f := range s.families() {
		want, err := wantedChains(f, baseChains(f, tables))
		if err != nil {
			return nil, had, err
		}
		have, err := s.reader.readRules(ctx, f)
		if err != nil {
			return nil, had, err
		}
		had = had || have != nil
		diffs = append(diffs, diffChains(f, want, have)...)
	}
	return diffs, had, nil
}

// apply makes our tables those wanted, as iptables' does.
func (s *nativeSession) apply(ctx context.Context, tables []Table) (had bool, err error) {
	err = errChanged
	for range maxTries {
		diffs, before, readErr := s.diff(ctx, tables)
		had = had || before
		if readErr != nil {
			return had, readErr
		}
		if len(diffs) == 0 {
			return had, nil
		}
		setErr := s.change(func(conn *nftables.Conn) error {
			for _, f := range s.families() {
				if err := replace(conn, f, baseChains(f, tables)); err != nil {
					return err
				}
			}
			return nil
		})
		if setErr != nil {
			err = setErr
		} else if s.locked {
			return had, nil
		}
	}
	return had, err
}

// replace makes a family's table anew; no chains are no table.
func replace(conn *nftables.Conn, f Family, chains []baseChain) error {
	t := &nftables.Table{Name: ownTable, Family: nftables.TableFamily(f.nfproto())}
	conn.AddTable(t) // so that there is one to delete
	conn.DelTable(t)
	if len(chains) == 0 {
		return nil
	}
	conn.AddTable(t)
	for _, c := range chains {
		policy := nftables.ChainPolicyAccept
		chain := conn.AddChain(&nftables.Chain{
			Name: c.name, Table: t, Type: nftables.ChainType(c.kind), Policy: &policy,
			Hooknum: hookOf(c.hook), Priority: nftables.ChainPriorityRef(nftables.ChainPriority(c.priority)),
		})
		if err := addRules(conn, f, chain, c.rules); err != nil {
			return err
		}
	}
	return nil
}

func hookOf(name string) *nftables.ChainHook {
	if name == "output" {
		return nftables.ChainHookOutput
	}
	return nftables.ChainHookPrerouting
}

func addRules(conn *nftables.Conn, f Family, chain *nftables.Chain, rules []Rule) error {
	for _, r := range rules {
		exprs, err := r.exprs(f)
		if err != nil {
			return err
		}
		conn.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs})
	}
	return nil
}

// clear removes our tables.
func (s *nativeSession) clear(ctx context.Context) error {
	_, had, err := s.diff(ctx, nil)
	if err == nil && !had {
		return nil
	}
	// What cannot be read can be removed all the same.
	return s.change(func(conn *nftables.Conn) error {
		for _, f := range s.families() {
			if err := replace(conn, f, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// stop empties the chains that capture, but leaves them where they are: the
// connections that were captured are translated only as long as there is a chain
// of nat's.
func (s *nativeSession) stop(ctx context.Context) error {
	marks := Table{Name: "mangle", Rules: markRules()}
	return s.changeFamilies(ctx, func(conn *nftables.Conn, f Family, have *nftRules) error {
		t := &nftables.Table{Name: ownTable, Family: nftables.TableFamily(f.nfproto())}
		for _, own := range ownChains() {
			for _, c := range []baseChain{chainOf("nat", own.builtin), chainOf("mangle", own.builtin)} {
				if !slices.ContainsFunc(have.chains, func(h nftChain) bool { return h.name == c.name }) {
					continue
				}
				chain := &nftables.Chain{Name: c.name, Table: t}
				conn.FlushChain(chain)
				if c.table() == marks.Name {
					if err := addRules(conn, f, chain, marks.chain(own.name)); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
}

// changeFamilies makes one change to those of our tables that are there.
func (s *nativeSession) changeFamilies(ctx context.Context, fn func(*nftables.Conn, Family, *nftRules) error) error {
	there := map[Family]*nftRules{}
	for _, f := range s.families() {
		have, err := s.reader.readRules(ctx, f)
		if err != nil {
			return err
		}
		if have != nil {
			there[f] = have
		}
	}
	if len(there) == 0 {
		return nil
	}
	return s.change(func(conn *nftables.Conn) error {
		for f, have := range there {
			if err := fn(conn, f, have); err != nil {
				return err
			}
		}
		return nil
	})
}

// change makes one transaction.
func (p place) change(fill func(*nftables.Conn) error) error {
	var conn *nftables.Conn
	err := p.ns.Do(func() (err error) { // it opens its socket where it is called
		conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(giveUp))
		return err
	})
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	defer conn.CloseLasting()
	err = fill(conn)
	if err == nil {
		err = conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("change nftables: %w", err)
	}
	return nil
}

// giveUp bounds how long a socket waits for the kernel.
func giveUp[C interface{ SetDeadline(time.Time) error }](conn C) error {
	return conn.SetDeadline(time.Now().Add(netlinkTimeout))
}
