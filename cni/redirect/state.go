package redirect

import (
	"fmt"
	"slices"
	"strings"
)

// table is what iptables-save printed of one table.
type table struct {
	name   string
	chains []chain
}

// chain is a chain and its rules, each as iptables-save printed it after the
// chain's name.
type chain struct {
	name  string
	rules []string
}

// state is what iptables-save printed of one family.
type state []table

// parseSave reads iptables-save's output.
func parseSave(text string) (state, error) {
	var s state
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line == "COMMIT":
			continue
		case line[0] == '*':
			s = append(s, table{name: line[1:]})
			continue
		case len(s) == 0:
			return nil, fmt.Errorf("iptables-save printed %q before any table", line)
		}
		t := &s[len(s)-1]
		if name, ok := strings.CutPrefix(line, ":"); ok {
			name, _, _ = strings.Cut(name, " ")
			t.chains = append(t.chains, chain{name: name})
			continue
		}
		rest, ok := strings.CutPrefix(line, "-A ")
		name, rule, _ := strings.Cut(rest, " ")
		c := t.chain(name)
		if !ok || c == nil {
			return nil, fmt.Errorf("iptables-save printed %q, which is no rule of a known chain of table %s", line, t.name)
		}
		c.rules = append(c.rules, rule)
	}
	return s, nil
}

// table returns a table by name; one that is not there is empty.
func (s state) table(name string) table {
	if i := slices.IndexFunc(s, func(t table) bool { return t.name == name }); i >= 0 {
		return s[i]
	}
	return table{name: name}
}

func (t table) chain(name string) *chain {
	if i := slices.IndexFunc(t.chains, func(c chain) bool { return c.name == name }); i >= 0 {
		return &t.chains[i]
	}
	return nil
}

// hasOwn says whether anything of ours is in the table.
func (t table) hasOwn() bool {
	return slices.ContainsFunc(t.chains, func(c chain) bool { return isOwn(c.name) })
}

// jumpsRight says whether exactly one rule leads to our chain: the first of the
// built-in chain, without a condition.
func (t table) jumpsRight(own, builtin string) bool {
	n := 0
	for _, c := range t.chains {
		for i, r := range c.rules {
			if !leadsTo(r, own) {
				continue
			}
			n++
			if c.name != builtin || i != 0 || r != "-j "+own {
				return false
			}
		}
	}
	return n == 1
}

// leadsTo says whether a rule jumps or goes to a chain.
func leadsTo(rule, chain string) bool {
	return strings.HasSuffix(rule, "-j "+chain) || strings.HasSuffix(rule, "-g "+chain)
}

// normalize brings a rule into a form in which equal rules are equal strings,
// whichever version of iptables printed them: without the names of match
// modules, and with the conditions sorted.
func normalize(rule string) string {
	var groups []string
	fields := strings.Fields(rule)
	for i := 0; i < len(fields); {
		end := i + 1
		for end < len(fields) && (fields[end-1] == "!" || !startsGroup(fields[end])) {
			end++
		}
		if fields[i] != "-m" {
			groups = append(groups, normalizeGroup(fields[i:end]))
		}
		i = end
	}
	slices.Sort(groups)
	return strings.Join(groups, " ")
}

func startsGroup(field string) bool { return field == "!" || strings.HasPrefix(field, "-") }

func normalizeGroup(fields []string) string {
	text := strings.Join(fields, " ")
	text = strings.TrimSuffix(strings.TrimSuffix(text, "/32"), "/128")
	return strings.Replace(text, "--to-port ", "--to-ports ", 1)
}
