package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/warren-mesh/warren/cni/redirect"
)

// ErrNoIPTables is returned (wrapped) where the PATH lacks the variant of
// iptables that is asked for.
var ErrNoIPTables = errors.New("no such iptables on the PATH")

const (
	chain     = "WARREN_POSTRT"
	hook      = "POSTROUTING"
	lockWait  = "5" // seconds that iptables waits for the host's lock
	lookupMax = 5 * time.Second
)

// iptables is the backend over iptables and ipset. The rules are in one chain,
// which is replaced as a whole; what is compared is the chain and the jump to it,
// never the whole table, which has many thousands of rules on a big cluster.
type iptables struct {
	variant string // redirect.NameNFT or redirect.NameLegacy
	place   *place
	sets    ipsets
	tools   map[bool]tool       // by whether it is IPv6's, which may be missing
	no6     string              // why it is
	printed map[bool][]string   // our chain as it was read back after apply
	printOf map[bool]([]string) // the rules that was of
}

// tool is one family's programs, as paths.
type tool struct{ iptables, restore string }

func newIPTables(variant string, p *place) (*iptables, error) {
	b := &iptables{variant: variant, place: p, sets: ipsets{p}, tools: map[bool]tool{}, printed: map[bool][]string{}, printOf: map[bool][]string{}}
	_, kind, _ := strings.Cut(variant, "-")
	for v6, program := range map[bool]string{false: "iptables", true: "ip6tables"} {
		t, err := lookTool(p, program, kind)
		switch {
		case err == nil:
			b.tools[v6] = t
		case v6:
			b.no6 = "there is no ip6tables on the PATH"
		default:
			return nil, fmt.Errorf("probe: %s: %w: %w", variant, ErrNoIPTables, err)
		}
	}
	return b, nil
}

// tryIPv6 leaves IPv6 out where it cannot be had, so that IPv4 does not suffer.
func (b *iptables) tryIPv6() {
	if _, ok := b.tools[true]; !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	if _, err := b.list(ctx, true, hook); err != nil {
		delete(b.tools, true)
		b.no6 = "ip6tables does not work here: " + err.Error()
	}
}

// lookTool finds a program under its variant's name, or under the plain one if
// that is the variant.
func lookTool(p *place, program, variant string) (t tool, err error) {
	if t, err = lookPair(program + "-" + variant); err == nil {
		return t, nil
	}
	if t, err = lookPair(program); err != nil {
		return t, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupMax)
	defer cancel()
	version, err := p.run(ctx, "", t.iptables, "-V")
	if err == nil && strings.Contains(version, "(nf_tables)") != (variant == "nft") {
		err = fmt.Errorf("%s is the other variant: %s", t.iptables, strings.TrimSpace(version))
	}
	return t, err
}

func lookPair(prefix string) (t tool, err error) {
	main, errMain := exec.LookPath(prefix)
	restore, errRestore := exec.LookPath(prefix + "-restore")
	return tool{main, restore}, errors.Join(errMain, errRestore)
}

func (b *iptables) name() string { return b.variant }

// generation: the sets are none of nftables' rules, and are looked at anyway.
func (b *iptables) generation() (uint32, bool) {
	if b.variant != redirect.NameNFT {
		return 0, false
	}
	return nftGeneration(b.place)
}

func (b *iptables) families() (v6s []bool) {
	for _, v6 := range []bool{false, true} {
		if _, ok := b.tools[v6]; ok {
			v6s = append(v6s, v6)
		}
	}
	return v6s
}

func (b *iptables) refuses(a netip.Addr) string {
	if a.Is6() {
		return b.no6
	}
	return ""
}

func (b *iptables) members(context.Context) (map[netip.Addr]string, error) {
	return b.sets.members(b.families())
}

func (b *iptables) edit(_ context.Context, put map[netip.Addr]string, drop []netip.Addr) error {
	return b.sets.edit(put, drop)
}

func (b *iptables) drift(ctx context.Context, r rules) (ds []drift, err error) {
	missing, err := b.sets.missing(b.families())
	if err != nil {
		return nil, err
	}
	for _, name := range missing {
		ds = append(ds, drift{text: "set " + name + " is missing"})
	}
	for _, v6 := range b.families() {
		have, err := b.read(ctx, v6)
		if err != nil {
			return nil, err
		}
		for _, d := range append(have.jumpDrift(), b.chainDrift(v6, have.own, specs(r, v6))...) {
			d.text = b.shown(v6) + ": " + d.text
			ds = append(ds, d)
		}
	}
	return ds, nil
}

func (b *iptables) shown(v6 bool) string { return b.tools[v6].iptables + " nat" }

// nat is what we want to know of a family's table.
type nat struct {
	hook  []string // rules of POSTROUTING
	own   []string // rules of ours
	there bool     // our chain is
}

func (b *iptables) read(ctx context.Context, v6 bool) (n nat, err error) {
	if n.hook, err = b.list(ctx, v6, hook); err != nil {
		return n, err
	}
	n.own, err = b.list(ctx, v6, chain)
	if n.there = err == nil; n.there {
		return n, nil
	}
	var refused *exitError
	if !errors.As(err, &refused) {
		return n, err
	}
	// Depending on the version, a chain that is not there is "incompatible" (so
	// is one that was changed with nft), "does not exist", or has no name.
	switch {
	case b.variant == redirect.NameNFT:
		n.there, err = b.chainExists(ctx, v6)
	case strings.Contains(refused.said, "No chain/target/match by that name"):
		err = nil
	}
	return n, err
}

func (b *iptables) chainExists(ctx context.Context, v6 bool) (there bool, err error) {
	family := nftables.TableFamilyIPv4
	if v6 {
		family = nftables.TableFamilyIPv6
	}
	err = withNFT(ctx, b.place, func(c *nftables.Conn) error {
		all, err := c.ListChainsOfTableFamily(family)
		there = slices.ContainsFunc(all, func(ch *nftables.Chain) bool { return ch.Table.Name == "nat" && ch.Name == chain })
		return err
	})
	return there, err
}

func (b *iptables) list(ctx context.Context, v6 bool, name string) (rules []string, err error) {
	out, err := b.place.run(ctx, "", b.tools[v6].iptables, "-w", lockWait, "-t", "nat", "-S", name)
	for line := range strings.Lines(out) {
		if rule, ok := strings.CutPrefix(strings.TrimSpace(line), "-A "+name+" "); ok {
			rules = append(rules, rule)
		}
	}
	return rules, err
}

const jump = "-j " + chain

// jumps are the places of the jumps to our chain.
func (n nat) jumps() (at []int) {
	for i, r := range n.hook {
		if r == jump {
			at = append(at, i)
		}
	}
	return at
}

func (n nat) jumpDrift() []drift {
	at := n.jumps()
	switch {
	case !n.there:
		return []drift{{text: "chain " + chain + " is missing"}}
	case len(at) == 0:
		return []drift{{text: hook + " does not jump to " + chain}}
	case len(at) > 1:
		return []drift{{text: fmt.Sprintf("%s jumps to %s %d times", hook, chain, len(at))}}
	case at[0] > 0:
		return []drift{{text: fmt.Sprintf("in %s, before the jump to %s stands: %s", hook, chain, short(strings.Join(n.hook[:at[0]], "; "))), place: true}}
	}
	return nil
}

// chainDrift compares our chain with what it should be: with the words in which
// it was printed right after it was set, or, where another process set it, by
// the marks of its rules.
func (b *iptables) chainDrift(v6 bool, have, want []string) []drift {
	printed := b.printed[v6]
	known := equal(b.printOf[v6], want)
	wrong := len(have) != len(want)
	for i := 0; !wrong && i < len(want); i++ {
		if known {
			wrong = have[i] != printed[i]
		} else {
			wrong = !strings.Contains(have[i], tag(want[i]))
		}
	}
	if wrong {
		return []drift{{text: fmt.Sprintf("chain %s is not what it should be: %s", chain, short(strings.Join(have, "; ")))}}
	}
	b.printed[v6], b.printOf[v6] = have, want
	return nil
}

// apply does IPv4 although IPv6 may fail.
func (b *iptables) apply(ctx context.Context, r rules) (errs error) {
	if err := b.sets.create(b.families()); err != nil {
		return err
	}
	for _, v6 := range b.families() {
		errs = errors.Join(errs, b.applyFamily(ctx, v6, specs(r, v6)))
	}
	return errs
}

func (b *iptables) applyFamily(ctx context.Context, v6 bool, want []string) error {
	have, err := b.read(ctx, v6)
	if err != nil {
		return err
	}
	if err := b.restore(ctx, v6, document(have, want)); err != nil {
		return err
	}
	delete(b.printOf, v6)
	if have, err = b.read(ctx, v6); err == nil && len(have.own) == len(want) {
		b.printed[v6], b.printOf[v6] = have.own, want
	}
	return nil
}

func (b *iptables) restore(ctx context.Context, v6 bool, doc string) error {
	_, err := b.place.run(ctx, doc, b.tools[v6].restore, "--noflush", "-w", lockWait)
	return err
}

func (b *iptables) remove(ctx context.Context) (errs error) {
	for _, v6 := range b.families() {
		used, err := b.inUse(v6)
		if err != nil || !used {
			errs = errors.Join(errs, err)
			continue
		}
		have, err := b.read(ctx, v6)
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		if doc := removal(have); doc != "" {
			errs = errors.Join(errs, b.restore(ctx, v6, doc))
		}
		delete(b.printOf, v6)
	}
	if errs == nil && b.variant == redirect.NameNFT {
		errs = b.removeEmptied(ctx)
	}
	return errs
}

// inUse says whether there can be anything of ours. The legacy variant's programs
// are not asked without need, since they load the kernel's modules to look; those
// of a kernel without IPv6 fail.
func (b *iptables) inUse(v6 bool) (used bool, err error) {
	path := "/proc/thread-self/net/ip_tables_names"
	if v6 {
		path = "/proc/thread-self/net/ip6_tables_names"
	}
	err = b.place.ns.Do(func() error {
		if b.variant == redirect.NameNFT {
			_, err := os.Stat("/proc/sys/net/ipv6")
			used = !v6 || err == nil
			return nil
		}
		tables, err := os.ReadFile(path)
		used = strings.Contains("\n"+string(tables), "\nnat\n")
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
	return used, err
}

// removeEmptied removes a table that iptables-nft made when we came and that has
// nothing in it now. The kernel refuses to remove a chain with rules.
func (b *iptables) removeEmptied(ctx context.Context) error {
	return withNFT(ctx, b.place, func(c *nftables.Conn) error {
		for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
			chains, err := c.ListChainsOfTableFamily(family)
			if err != nil {
				return err
			}
			inNAT, ours := 0, (*nftables.Chain)(nil)
			for _, ch := range chains {
				if ch.Table.Name == "nat" {
					inNAT, ours = inNAT+1, ch
				}
			}
			if inNAT != 1 || ours.Name != hook {
				continue
			}
			if rules, err := c.GetRules(ours.Table, ours); err != nil || len(rules) > 0 {
				continue
			}
			c.DelChain(ours)
			if c.Flush() == nil {
				c.DelTable(ours.Table)
				if err := c.Flush(); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
