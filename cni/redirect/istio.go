package redirect

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrNotAmbient is returned (wrapped) for a pod that another mesh has redirected
// in a way that cannot be taken over: a sidecar's, in most cases.
var ErrNotAmbient = errors.New("it is not of Istio's ambient mode, and stays as it is")

const (
	istioPrerouting = "ISTIO_PRERT"
	istioOutput     = "ISTIO_OUTPUT"
	istioNFT        = "istio-ambient-" // and the name of a table
)

func istioChains() chainSet {
	return chainSet{
		{istioPrerouting, "PREROUTING"},
		{istioOutput, "OUTPUT"},
	}
}

// ambient says whether s is Istio's for a pod of its ambient mesh.
func (s stranger) ambient() bool {
	if s.form == NameNFTables {
		table, ok := strings.CutPrefix(s.table, istioNFT)
		return ok && slices.Contains(tableNames(), table)
	}
	return istioChains().has(s.chain) && slices.Contains(tableNames(), s.table)
}

// takeable returns the form that strangers are in; "" is none. Istio's agent
// uses one.
func takeable(all []stranger) (form string, err error) {
	for _, s := range all {
		switch {
		case !s.ambient():
			return "", fmt.Errorf("%s: %w", s, ErrNotAmbient)
		case form == "":
			form = s.form
		case form != s.form:
			return "", fmt.Errorf("%s: Istio's rules are there twice, made with %s and with %s; delete one", s, form, s.form)
		}
	}
	return form, nil
}

// istioRules are the rules that Istio's agent makes for c. They are ours, but
// that it captures whatever conntrack takes for new, and guards nothing.
func istioRules(c Config) []Table {
	tables := Rules(c)
	for i := range tables {
		var rules []Rule
		for _, r := range tables[i].Rules {
			if r.Action.Verb != Drop {
				r.Match.Opens = false
				rules = append(rules, r)
			}
		}
		tables[i].Rules = rules
	}
	return tables
}

// istioDocument puts those rules in place where there are none, for
// iptables-restore. They come after what is there, as Istio's agent has them.
func istioDocument(f Family, tables []Table) string {
	var d document
	for _, t := range tables {
		if t.Family != f {
			continue
		}
		d.line("*%s", t.Name)
		for i, own := range ownChains() {
			if rules := t.chain(own.name); len(rules) > 0 {
				theirs := istioChains()[i]
				d.line(":%s - [0:0]", theirs.name)
				d.line("-A %s -j %s", theirs.builtin, theirs.name)
				for _, r := range rules {
					d.line("-A %s %s", theirs.name, r.istioSpec())
				}
			}
		}
		d.line("COMMIT")
	}
	return d.String()
}

// istioSpec is spec in the words of Istio's agent. It looks for its rules by
// these, and their order counts.
func (r Rule) istioSpec() string {
	spec := r.spec()
	if r.Match.Proto == "udp" { // the port after the mark
		spec, target, _ := strings.Cut(spec, " -j ")
		before, rest, _ := strings.Cut(spec, " -m udp ")
		ports, mark, _ := strings.Cut(rest, " -m mark ")
		return before + " -m mark " + mark + " -m udp " + ports + " -j " + target
	}
	if m := r.Match; r.Action.Verb == Accept && m.Proto == "tcp" && m.Mark.Mask == 0 { // probes
		return strings.Replace(spec, "-p tcp", "-p tcp -m tcp", 1)
	}
	return spec
}
