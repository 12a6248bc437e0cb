package redirect

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ownChain is a chain of ours with the built-in chain that it is reached from.
type ownChain struct{ name, builtin string }

// chainSet are the chains of one mesh.
type chainSet []ownChain

func ownChains() chainSet {
	return chainSet{
		{ChainPrerouting, "PREROUTING"},
		{ChainOutput, "OUTPUT"},
	}
}

func (s chainSet) has(chain string) bool {
	return slices.ContainsFunc(s, func(c ownChain) bool { return c.name == chain })
}

func isOwn(chain string) bool { return ownChains().has(chain) }

// chain returns the rules of one chain of the table.
func (t Table) chain(name string) (rules []Rule) {
	for _, r := range t.Rules {
		if r.Chain == name {
			rules = append(rules, r)
		}
	}
	return rules
}

// spec renders a rule as iptables' arguments, in the form and order in which
// iptables-save prints it.
func (r Rule) spec() string {
	m := r.Match
	var w words
	if m.Src.Prefix.IsValid() {
		w.add(m.Src.Not, "-s", m.Src.Prefix.String())
	}
	if m.Dst.Prefix.IsValid() {
		w.add(m.Dst.Not, "-d", m.Dst.Prefix.String())
	}
	if m.In.Name != "" {
		w.add(m.In.Not, "-i", m.In.Name)
	}
	if m.Out.Name != "" {
		w.add(m.Out.Not, "-o", m.Out.Name)
	}
	if m.Proto != "" {
		w.add(false, "-p", m.Proto)
	}
	if m.SrcPort.Number != 0 || m.DstPort.Number != 0 || m.Opens {
		w.add(false, "-m", m.Proto)
	}
	if m.SrcPort.Number != 0 {
		w.add(m.SrcPort.Not, "--sport", port(m.SrcPort.Number))
	}
	if m.DstPort.Number != 0 {
		w.add(m.DstPort.Not, "--dport", port(m.DstPort.Number))
	}
	if m.Opens {
		w.add(false, "--tcp-flags", "FIN,SYN,RST,ACK SYN")
	}
	if m.Mark.Mask != 0 {
		w.add(false, "-m", "mark")
		w.add(m.Mark.Not, "--mark", m.Mark.String())
	}
	if m.ConnMark.Mask != 0 {
		w.add(false, "-m", "connmark")
		w.add(m.ConnMark.Not, "--mark", m.ConnMark.String())
	}
	return strings.Join(slices.Concat(w, m.Tracked.match(), r.Action.target()), " ")
}

func (w Tracked) match() []string {
	switch w {
	case Unplaced:
		return []string{"-m", "conntrack", "--ctstate", "INVALID,UNTRACKED"}
	case Passed:
		return []string{"-m", "conntrack", "!", "--ctstate", "DNAT", "--ctstatus", "CONFIRMED"}
	case Answered:
		return []string{"-m", "conntrack", "--ctstate", "ESTABLISHED"}
	}
	return nil
}

func (a Action) target() []string {
	switch a.Verb {
	case Accept:
		return []string{"-j", "ACCEPT"}
	case Return:
		return []string{"-j", "RETURN"}
	case Redirect:
		return []string{"-j", "REDIRECT", "--to-ports", port(a.Port)}
	case MarkConnection:
		return []string{"-j", "CONNMARK", "--set-xmark", a.Mark.String()}
	case RestoreMark:
		return []string{"-j", "CONNMARK", "--restore-mark", "--nfmask", "0xffffffff", "--ctmask", "0xffffffff"}
	case Drop:
		return []string{"-j", "DROP"}
	case Track:
		return []string{"-j", "CT", "--zone", port(a.Zone)}
	}
	return []string{"-j", fmt.Sprintf("unknown-verb-%d", a.Verb)} // iptables refuses it
}

func (m Mark) String() string { return fmt.Sprintf("%#x/%#x", m.Value, m.Mask) }

func port(n uint16) string { return strconv.Itoa(int(n)) }

type words []string

func (w *words) add(not bool, flag, value string) {
	if not {
		*w = append(*w, "!")
	}
	*w = append(*w, flag, value)
}

// document is input for iptables-restore --noflush.
type document struct{ strings.Builder }

func (d *document) line(format string, args ...any) {
	fmt.Fprintf(d, format, args...)
	d.WriteByte('\n')
}

// fill writes the part that makes a table t's, given what is in it. In a
// --noflush document the declaration of a chain creates or empties it, and the
// whole part takes effect at COMMIT or not at all.
func (d *document) fill(t Table, have table) {
	d.line("*%s", t.Name)
	for _, own := range ownChains() {
		if len(t.chain(own.name)) > 0 {
			d.line(":%s - [0:0]", own.name)
		}
	}
	var unwanted, missing chainSet
	for _, own := range ownChains() {
		wanted := len(t.chain(own.name)) > 0
		if wanted && have.jumpsRight(own.name, own.builtin) {
			continue
		}
		unwanted = append(unwanted, own)
		if wanted {
			missing = append(missing, own)
		}
	}
	d.unjump(have, ownChains(), unwanted) // before anything is inserted: it counts rules
	for _, own := range missing {
		d.line("-I %s 1 -j %s", own.builtin, own.name)
	}
	for _, own := range ownChains() {
		rules := t.chain(own.name)
		for _, r := range rules {
			d.line("# %s", r.Why)
			d.line("-A %s %s", own.name, r.spec())
		}
		if len(rules) == 0 && have.chain(own.name) != nil {
			d.line("-F %s", own.name)
			d.line("-X %s", own.name)
		}
	}
	d.line("COMMIT")
}

// clear writes the part that takes everything of ours out of a table.
func (d *document) clear(have table) { d.clearOf(have, ownChains()) }

// clearOf is clear for the chains of one mesh.
func (d *document) clearOf(have table, chains chainSet) {
	if !have.hasAny(chains) {
		return
	}
	d.line("*%s", have.name)
	d.unjump(have, chains, chains)
	for _, verb := range []string{"-F", "-X"} { // all empty before the first goes: one may jump to the other
		for _, own := range chains {
			if have.chain(own.name) != nil {
				d.line("%s %s", verb, own.name)
			}
		}
	}
	d.line("COMMIT")
}

// unjump deletes the rules that lead to some of a mesh's chains, however they
// came to be. Those in its own chains go when the chain is emptied.
//
// Nothing of a rule's text gets into the document. A pod may write rules, and
// with them words that iptables-restore, which we run as the host's root, takes
// for options (--modprobe names a program to start). A rule that is not our own
// plain jump goes by its number, the last first, so that the numbers hold.
func (d *document) unjump(have table, all, owns chainSet) {
	for _, c := range have.chains {
		if all.has(c.name) || !plainChain(c.name) { // one that is not plain keeps ours in use, and iptables says so
			continue
		}
		var plain []string
		for i := len(c.rules) - 1; i >= 0; i-- {
			for _, own := range owns {
				switch r := c.rules[i]; {
				case r == "-j "+own.name:
					plain = append(plain, own.name)
				case leadsTo(r, own.name):
					d.line("-D %s %d", c.name, i+1)
				}
			}
		}
		for _, own := range plain {
			d.line("-D %s -j %s", c.name, own)
		}
	}
}

// plainChain says whether a chain's name is one word and no option, for
// iptables-restore. The kernel takes any bytes.
func plainChain(name string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-"
	return name != "" && name[0] != '-' && strings.Trim(name, letters) == ""
}
