package redirect

import (
	"fmt"
	"slices"
	"strings"
)

// diffRules says what differs in one family between the rules that should be
// there and the state.
func diffRules(f Family, want []Table, have state) (diffs []string) {
	for _, name := range tableNames() {
		w := Table{Family: f, Name: name}
		if i := slices.IndexFunc(want, func(t Table) bool { return t.Family == f && t.Name == name }); i >= 0 {
			w = want[i]
		}
		for _, d := range diffTable(w, have.table(name)) {
			diffs = append(diffs, fmt.Sprintf("%s %s %s", f, name, d))
		}
	}
	return diffs
}

// maxDiffs bounds Verify's answer: the rules are the pod's to add to.
const maxDiffs = 50

// cutDiffs keeps the first ones, and says how many there were.
func cutDiffs(diffs []string) []string {
	if len(diffs) <= maxDiffs {
		return diffs
	}
	return append(diffs[:maxDiffs:maxDiffs], fmt.Sprintf("and %d more", len(diffs)-maxDiffs))
}

// tableNames lists the tables that we may have rules in.
func tableNames() []string { return []string{"mangle", "raw", "nat"} }

func diffTable(want Table, have table) (diffs []string) {
	for _, own := range ownChains() {
		rules, c := want.chain(own.name), have.chain(own.name)
		switch {
		case c == nil && len(rules) == 0:
			continue
		case c == nil:
			diffs = append(diffs, own.name+": the chain is missing")
			continue
		case len(rules) == 0:
			diffs = append(diffs, own.name+": the chain should not be there")
			continue
		}
		diffs = append(diffs, diffJumps(own.name, own.builtin, have)...)
		for _, d := range diffChain(rules, c.rules) {
			diffs = append(diffs, own.name+": "+d)
		}
	}
	return diffs
}

// diffJumps says what is wrong with the way to one of our chains.
func diffJumps(own, builtin string, have table) (diffs []string) {
	right := 0
	for _, c := range have.chains {
		for i, r := range c.rules {
			switch {
			case !leadsTo(r, own):
			case c.name != builtin || r != "-j "+own:
				diffs = append(diffs, fmt.Sprintf("%s: rule %d should not lead to %s: %s", shown(c.name), i+1, own, shown(r)))
			case right > 0:
				diffs = append(diffs, fmt.Sprintf("%s: rule %d jumps to %s once more", builtin, i+1, own))
			default:
				right++
				if i > 0 {
					diffs = append(diffs, fmt.Sprintf("%s: the jump to %s is rule %d; before it stands: %s",
						builtin, own, i+1, shown(strings.Join(c.rules[:min(i, maxDiffs)], "; "))))
				}
			}
		}
	}
	if right == 0 {
		diffs = append(diffs, fmt.Sprintf("%s: the jump to %s is missing", builtin, own))
	}
	return diffs
}

// line is a rule: the key says what it does, equal ones the same, and the text
// is for people.
type line struct{ key, text string }

// diffChain compares the rules of a chain with what iptables-save printed.
func diffChain(want []Rule, have []string) (diffs []string) {
	var w, h []line
	for _, r := range want {
		w = append(w, line{normalize(r.spec()), r.spec()})
	}
	for _, r := range have {
		h = append(h, line{normalize(r), r})
	}
	return diffLines(w, h)
}

// diffLines compares the rules of a chain: those that are missing, those that
// are too many, and, of those that both have, the order.
func diffLines(want, have []line) (diffs []string) {
	left := slices.Clone(want) // not found yet
	find := func(l line) int { return slices.IndexFunc(left, func(o line) bool { return o.key == l.key }) }
	var both, common []line
	for i, r := range have {
		at := find(r)
		if at < 0 {
			diffs = append(diffs, fmt.Sprintf("rule %d should not be there: %s", i+1, shown(r.text)))
			continue
		}
		left = slices.Delete(left, at, at+1)
		both = append(both, r)
	}
	for i, r := range want {
		if at := find(r); at >= 0 {
			left = slices.Delete(left, at, at+1)
			diffs = append(diffs, fmt.Sprintf("rule %d is missing: %s", i+1, r.text))
			continue
		}
		common = append(common, r)
	}
	for i, r := range common {
		if r.key != both[i].key {
			return append(diffs, fmt.Sprintf("out of order from rule %d on, which should be: %s", i+1, r.text))
		}
	}
	return diffs
}
