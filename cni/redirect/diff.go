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

// diffChain compares the rules of a chain: those that are missing, those that
// are too many, and, of those that both have, the order.
func diffChain(want []Rule, have []string) (diffs []string) {
	var wanted, both []string
	for _, r := range want {
		wanted = append(wanted, normalize(r.spec()))
	}
	left := slices.Clone(wanted) // not found yet
	for i, r := range have {
		n := normalize(r)
		at := slices.Index(left, n)
		if at < 0 {
			diffs = append(diffs, fmt.Sprintf("rule %d should not be there: %s", i+1, shown(r)))
			continue
		}
		left = slices.Delete(left, at, at+1)
		both = append(both, n)
	}
	var common []Rule
	for i, n := range wanted {
		if at := slices.Index(left, n); at >= 0 {
			left = slices.Delete(left, at, at+1)
			diffs = append(diffs, fmt.Sprintf("rule %d is missing: %s", i+1, want[i].spec()))
			continue
		}
		common = append(common, want[i])
	}
	for i, r := range common {
		if normalize(r.spec()) != both[i] {
			return append(diffs, fmt.Sprintf("out of order from rule %d on, which should be: %s", i+1, r.spec()))
		}
	}
	return diffs
}

// foreign names the chains of another mesh's agent.
func foreign(f Family, have state) (found []string) {
	for _, t := range have {
		for _, c := range t.chains {
			if strings.HasPrefix(c.name, foreignPrefix) {
				found = append(found, fmt.Sprintf("%s %s %s", f, shown(t.name), shown(c.name)))
			}
		}
	}
	return found
}

// foreignPrefix begins the names of Istio's chains, in a pod and in a sidecar's.
const foreignPrefix = "ISTIO_"
