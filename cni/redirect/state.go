package redirect

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
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

// parseSave reads iptables-save's output, in time proportional to its length:
// what is in it is the pod's to choose.
func parseSave(text string) (state, error) {
	var s state
	var chains map[string]int // of the last table
	lines := strings.SplitAfter(text, "\n")
	for len(lines) > 0 {
		var line string
		if line, lines = cutRule(lines); line == "" {
			continue
		}
		switch {
		case line[0] == '#':
			if name := incompatible(line); slices.Contains(tableNames(), name) {
				return nil, fmt.Errorf("%w: table %s", errIncompatible, name)
			}
			continue
		case line == "COMMIT":
			continue
		case line[0] == '*':
			s, chains = append(s, table{name: line[1:]}), map[string]int{}
			continue
		case len(s) == 0:
			return nil, fmt.Errorf("iptables-save printed %s before any table", shown(line))
		}
		t := &s[len(s)-1]
		if name, ok := strings.CutPrefix(line, ":"); ok {
			name, _, _ = strings.Cut(name, " ")
			chains[name] = len(t.chains)
			t.chains = append(t.chains, chain{name: name})
			continue
		}
		rest, ok := strings.CutPrefix(line, "-A ")
		name, rule, _ := strings.Cut(rest, " ")
		i, known := chains[name]
		if !ok || !known {
			return nil, fmt.Errorf("iptables-save printed %s, which is no rule of a known chain of table %s", shown(line), shown(t.name))
		}
		t.chains[i].rules = append(t.chains[i].rules, rule)
	}
	return s, nil
}

// errIncompatible is of a table that was changed with nft so that iptables
// cannot say what is in it. It must not be taken for an empty one.
var errIncompatible = errors.New("it holds what iptables cannot read; change it back with nft")

// incompatible returns the table's name in iptables-nft-save's comment
// "# Table `nat' is incompatible, use 'nft' tool."
func incompatible(comment string) string {
	rest, ok := strings.CutPrefix(comment, "# Table `")
	name, rest, _ := strings.Cut(rest, "' ")
	if !ok || !strings.Contains(rest, "incompatible") {
		return ""
	}
	return name
}

// cutRule takes the first line, and those that it goes on in: a quoted text, such
// as a comment, may contain line ends, and what follows one of them is no rule.
func cutRule(lines []string) (rule string, rest []string) {
	n, quoted := 1, false
	if strings.HasPrefix(lines[0], "-A ") {
		for quoted = endsQuoted(lines[0], false); quoted && n < len(lines); n++ {
			quoted = endsQuoted(lines[n], quoted)
		}
	}
	return strings.TrimSpace(strings.Join(lines[:n], "")), lines[n:]
}

// endsQuoted says whether the end of a line is inside a quoted text, given
// whether its beginning is.
func endsQuoted(line string, quoted bool) bool {
	for i := 0; i < len(line); i++ {
		switch {
		case quoted && line[i] == '\\':
			i++
		case quoted:
			quoted = line[i] != '"'
		default: // only a whole word is quoted
			quoted = line[i] == '"' && i > 0 && line[i-1] == ' '
		}
	}
	return quoted
}

// maxShown bounds what is repeated of one text that a pod may have written.
const maxShown = 300

// shown makes a text that a pod may have written fit for logs and terminals.
func shown(text string) string {
	cut := ""
	if len(text) > maxShown {
		text, cut = text[:maxShown], "…"
	}
	text = strings.ToValidUTF8(text, "?")
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		text = strconv.Quote(text)
	}
	return text + cut
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
func (t table) hasOwn() bool { return t.hasAny(ownChains()) }

func (t table) hasAny(chains chainSet) bool {
	return slices.ContainsFunc(t.chains, func(c chain) bool { return chains.has(c.name) })
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
