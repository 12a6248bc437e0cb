package probe

import (
	"fmt"
	"slices"
	"strings"
)

// specs are a family's rules in iptables' words, each without the mark that
// document gives it.
func specs(r rules, v6 bool) (all []string) {
	source := r.ip4
	if v6 {
		source = r.ip6
	}
	to := "-j SNAT --to-source " + source.String()
	for _, t := range r.tests {
		if t.to.Addr().Is6() != v6 {
			continue
		}
		target := to
		if !t.translate {
			target = "-j RETURN"
		}
		all = append(all, fmt.Sprintf("-d %s -p tcp -m tcp --dport %d -m owner --socket-exists %s", t.to.Addr(), t.to.Port(), target))
	}
	match := "-p tcp -m set --match-set " + setName(v6) + " dst "
	switch r.limit.Kind {
	case ByCgroup:
		for _, c := range r.limit.Cgroups {
			// The path is looked up once, when the rule is made: another cgroup of
			// that path is another rule, which the mark tells.
			all = append(all, fmt.Sprintf("%s-m owner --socket-exists -m cgroup --path %s %s%s", match, c.Path, to, idMark(c)))
		}
	case ByUser:
		for _, u := range r.limit.Users {
			all = append(all, fmt.Sprintf("%s-m owner --uid-owner %d %s", match, u, to))
		}
	default:
		all = append(all, match+"-m owner --socket-exists "+to)
	}
	return all
}

// idMark goes into a rule's mark only; ruleOf takes it off.
func idMark(c Cgroup) string { return fmt.Sprintf(" #%d", c.ID) }

func ruleOf(spec string) string {
	rule, _, _ := strings.Cut(spec, " #")
	return fmt.Sprintf("-A %s -m comment --comment %q %s", chain, tag(spec), rule)
}

// document is what iptables-restore is given. Its parts take effect at once: the
// chain is never empty in between.
func document(have nat, want []string) string {
	var d strings.Builder
	fmt.Fprintf(&d, "*nat\n:%s - [0:0]\n", chain) // made, or emptied
	for _, spec := range want {
		d.WriteString(ruleOf(spec) + "\n")
	}
	if at := have.jumps(); len(at) != 1 || at[0] != 0 {
		for range at {
			fmt.Fprintf(&d, "-D %s %s\n", hook, jump)
		}
		fmt.Fprintf(&d, "-I %s 1 %s\n", hook, jump)
	}
	d.WriteString("COMMIT\n")
	return d.String()
}

// removal takes all of ours away; "" when there is nothing.
func removal(have nat) string {
	if !have.there && len(have.jumps()) == 0 {
		return ""
	}
	var d strings.Builder
	fmt.Fprintf(&d, "*nat\n")
	for range have.jumps() {
		fmt.Fprintf(&d, "-D %s %s\n", hook, jump)
	}
	if have.there {
		fmt.Fprintf(&d, "-F %s\n-X %[1]s\n", chain)
	}
	d.WriteString("COMMIT\n")
	return d.String()
}

func equal(a, b []string) bool { return a != nil && slices.Equal(a, b) }

// short bounds what is repeated of rules that others wrote.
func short(text string) string {
	const most = 300
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "?") + "…"
	}
	return text
}
