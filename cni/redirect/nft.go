package redirect

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// NameNFTables is the backend that needs no program on the host.
const NameNFTables = "nftables"

// ownTable is the name of our nftables table. There is one in each family.
const ownTable = "warren"

// baseChain is a chain of our table. It hangs on a hook by itself, so that
// nothing need jump to it.
type baseChain struct {
	name     string
	kind     string // as nft says it: filter, nat or route
	hook     string
	priority int
	rules    []Rule
}

// baseChains are the chains that make one family's tables. Their priorities are
// one before the usual ones: the pod's own rules come after ours, as they do
// with iptables. There is always one on which nat hangs, with rules or without:
// the kernel undoes translations only as long as there is.
func baseChains(f Family, tables []Table) (chains []baseChain) {
	for _, t := range tables {
		if t.Family != f {
			continue
		}
		for _, own := range ownChains() {
			if rules := t.chain(own.name); len(rules) > 0 {
				c := chainOf(t.Name, own.builtin)
				c.rules = rules
				chains = append(chains, c)
			}
		}
	}
	return chains
}

func chainOf(table, builtin string) baseChain {
	c := baseChain{kind: "filter", hook: strings.ToLower(builtin)}
	switch {
	case table == "nat":
		c.kind, c.priority = "nat", -101
	case table == "raw":
		c.priority = -301
	case builtin == "OUTPUT": // a changed mark is to change the route
		c.kind, c.priority = "route", -151
	default:
		c.priority = -151
	}
	c.name = table + "-" + c.hook
	return c
}

// table is the model's table that the chain is of.
func (c baseChain) table() string { return tableOfChain(c.name) }

func tableOfChain(name string) string {
	table, _, _ := strings.Cut(name, "-")
	return table
}

// script renders a family's chains for nft -f, which makes the table so whatever
// was in it.
func script(f Family, chains []baseChain) string {
	var d document
	d.line("table %s %s", f, ownTable)
	d.line("delete table %s %s", f, ownTable)
	d.line("table %s %s {", f, ownTable)
	for _, c := range chains {
		d.line("\tchain %s {", c.name)
		d.line("\t\ttype %s hook %s priority %d; policy accept;", c.kind, c.hook, c.priority)
		for _, r := range c.rules {
			d.line("\t\t# %s", r.Why)
			d.line("\t\t%s", r.statement(f))
		}
		d.line("\t}")
	}
	d.line("}")
	return d.String()
}

// statement renders a rule in nft's words. The order is that of exprs.
func (r Rule) statement(f Family) string {
	m := r.Match
	var w words
	w.say(m.In.Name != "", m.In.Not, "iifname", strconv.Quote(m.In.Name))
	w.say(m.Out.Name != "", m.Out.Not, "oifname", strconv.Quote(m.Out.Name))
	w.say(m.Src.Prefix.IsValid(), m.Src.Not, f.String()+" saddr", m.Src.Prefix.String())
	w.say(m.Dst.Prefix.IsValid(), m.Dst.Not, f.String()+" daddr", m.Dst.Prefix.String())
	w.say(m.Proto != "", false, "meta l4proto", m.Proto)
	w.say(m.SrcPort.Number != 0, m.SrcPort.Not, m.Proto+" sport", port(m.SrcPort.Number))
	w.say(m.DstPort.Number != 0, m.DstPort.Not, m.Proto+" dport", port(m.DstPort.Number))
	w.say(m.Opens, false, "tcp flags & (fin | syn | rst | ack)", "syn")
	w.say(m.Mark.Mask != 0, m.Mark.Not, fmt.Sprintf("meta mark & %#x", m.Mark.Mask), fmt.Sprintf("%#x", m.Mark.Value))
	w.say(m.ConnMark.Mask != 0, m.ConnMark.Not, fmt.Sprintf("ct mark & %#x", m.ConnMark.Mask), fmt.Sprintf("%#x", m.ConnMark.Value))
	switch m.Tracked {
	case Unplaced:
		w = append(w, "ct state invalid,untracked")
	case Passed:
		w = append(w, "ct status & (confirmed | dnat) == confirmed")
	case Answered:
		w = append(w, "ct state established")
	}
	return strings.Join(append(w, r.Action.verdict()), " ")
}

// say adds a condition.
func (w *words) say(want, not bool, what, value string) {
	if want {
		*w = append(*w, what, map[bool]string{false: "==", true: "!="}[not], value)
	}
}

func (a Action) verdict() string {
	switch a.Verb {
	case Accept:
		return "accept"
	case Return:
		return "return"
	case Drop:
		return "drop"
	case Redirect:
		return "redirect to :" + port(a.Port)
	case MarkConnection:
		return fmt.Sprintf("ct mark set ct mark & %#x | %#x", ^a.Mark.Mask, a.Mark.Value)
	case RestoreMark:
		return "meta mark set ct mark"
	case Track:
		return "ct zone set " + port(a.Zone)
	}
	return fmt.Sprintf("unknown-verb-%d", a.Verb) // nft refuses it
}

// nftRules is what is in our table of one family, as far as it matters.
type nftRules struct {
	sleeps bool // the table is there and switched off
	chains []nftChain
}

// nftChain is a chain as the kernel has it.
type nftChain struct {
	name  string
	hangs string // what on: "nat hook output priority -101; policy accept"
	rules []line
}

func (c baseChain) hangs() string {
	return fmt.Sprintf("%s hook %s priority %d; policy accept", c.kind, c.hook, c.priority)
}

// diffChains says what differs in one family.
func diffChains(f Family, want []nftChain, have *nftRules) (diffs []string) {
	say := func(format string, args ...any) {
		diffs = append(diffs, fmt.Sprintf("%s %s ", f, ownTable)+fmt.Sprintf(format, args...))
	}
	if have == nil {
		have = &nftRules{}
		if len(want) > 0 {
			return []string{fmt.Sprintf("%s %s: the table is missing", f, ownTable)}
		}
	}
	if have.sleeps {
		diffs = append(diffs, fmt.Sprintf("%s %s: the table is dormant", f, ownTable))
	}
	for _, w := range want {
		i := slices.IndexFunc(have.chains, func(c nftChain) bool { return c.name == w.name })
		if i < 0 {
			say("%s: the chain is missing", w.name)
			continue
		}
		if h := have.chains[i].hangs; h != w.hangs {
			say("%s: the chain should be of type %s, and is %s", w.name, w.hangs, cmp.Or(shown(h), "on no hook"))
		}
		for _, d := range diffLines(w.rules, have.chains[i].rules) {
			say("%s: %s", w.name, d)
		}
	}
	for _, c := range have.chains {
		if !slices.ContainsFunc(want, func(w nftChain) bool { return w.name == c.name }) {
			say("%s: the chain should not be there", shown(c.name))
		}
	}
	return diffs
}
