package nodeagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/warren-mesh/warren/nodeagent/zds"
)

// The words for the parts of a node. They are made from what the agent knows
// and the proxy says; no I/O here but agentPart's.

func (a *Agent) agentPart(ctx context.Context, now time.Time) Part {
	if err := a.enroll.Status(ctx); err != nil {
		return Part{Degraded, err.Error()}
	}
	what := fmt.Sprintf("up for %s, redirects with %s, reads %s", ago(now.Sub(a.started)), a.backend.Name(), a.source.name)
	var bad []string
	if problems := a.source.problems(); len(problems) > 0 {
		bad = append(bad, "not taken: "+strings.Join(problems[:min(len(problems), maxDiffs)], "; "))
		if more := len(problems) - maxDiffs; more > 0 {
			bad = append(bad, fmt.Sprintf("and %d more", more))
		}
	}
	if rival := a.enroll.Rival(); rival != "" {
		bad = append(bad, "Istio's node agent is on this node, too ("+rival+"): no pod is taken into the mesh until it is gone")
	}
	if err := a.cluster.problem(); err != nil {
		bad = append(bad, "cannot be written: "+err.Error())
	}
	if len(bad) > 0 {
		return Part{Degraded, strings.Join(bad, "; ")}
	}
	return Part{Healthy, what}
}

// ready says whether the agent can take pods; nil if so.
func (a *Agent) ready(ctx context.Context) error {
	if err := a.enroll.Status(ctx); err != nil {
		return err
	}
	if in := a.host.install; in != nil && !in.State().Runs {
		return errors.New("the CNI plugin: " + in.State().String())
	}
	return nil
}

func proxyPart(st zds.State, adminErr error, now time.Time) Part {
	switch {
	case st.Connections == 0:
		return Part{Degraded, strings.TrimSuffix("none is connected: "+st.LastError, ": ")}
	case st.Ready == 0:
		return Part{Degraded, "connected, but it has not taken all pods yet"}
	}
	p := Part{Healthy, fmt.Sprintf("connected for %s", ago(now.Sub(st.Since)))}
	if st.Ready > 1 {
		p.Detail = fmt.Sprintf("%d are connected, the newest for %s", st.Ready, ago(now.Sub(st.Since)))
	}
	switch {
	case errors.Is(adminErr, errNoAdmin):
		p.Detail += "; it has no administration socket, so that much about it is unknown"
	case adminErr != nil:
		p = Part{Degraded, p.Detail + ", but its administration socket does not answer: " + adminErr.Error()}
	}
	return p
}

// lineParts judges the proxy's lines to the control plane and to the CA, and
// what they say about its token.
func lineParts(l adminLines, err error, now time.Time) (xds, ca, token Part) {
	if err != nil {
		p := Part{Unknown, "the proxy cannot be asked"}
		return p, p, p
	}
	return xdsPart(l.XDS, now), withAlarms(caPart(l.CA, now), l.Alarms), tokenPart(l)
}

func xdsPart(l adminLine, now time.Time) Part {
	switch l.State {
	case "connected":
		return Part{Healthy, fmt.Sprintf("connected to %s%s", l.Address, since(l.Since, now))}
	case "off":
		return Part{Healthy, "not used" + inBrackets(l.Address)}
	default:
		return Part{Degraded, because(fmt.Sprintf("not connected to %s%s", l.Address, since(l.Since, now)), l.LastError)}
	}
}

func caPart(l adminLine, now time.Time) Part {
	switch {
	case l.State == "failing":
		return Part{Degraded, because(fmt.Sprintf("%s gives no certificates%s", l.Address, since(l.Since, now)), l.LastError)}
	case l.LastSuccess != nil:
		return Part{Healthy, fmt.Sprintf("%s, last certificate %s ago", l.Address, ago(now.Sub(*l.LastSuccess)))}
	default:
		return Part{Healthy, fmt.Sprintf("%s, not asked for a certificate yet", cmp.Or(l.Address, "none"))}
	}
}

// withAlarms adds what the proxy says about where certificates come from.
func withAlarms(p Part, alarms map[string]string) Part {
	for _, name := range slices.Sorted(maps.Keys(alarms)) {
		if name != tokenAlarm {
			p = Part{Degraded, fmt.Sprintf("%s; %s: %.512s", p.Detail, name, alarms[name])}
		}
	}
	return p
}

// tokenAlarm is the proxy's name for the alarm about its token.
const tokenAlarm = "token"

// tokenPart judges the proxy's token by what became of it, and by what will: it works until it expires.
func tokenPart(l adminLines) Part {
	if text := l.Alarms[tokenAlarm]; text != "" {
		return Part{Degraded, fmt.Sprintf("%.512s", text)}
	}
	for _, line := range []adminLine{l.XDS, l.CA} {
		if line.State != "connected" && refused(line.LastError) {
			return Part{Degraded, because("refused by "+line.Address, line.LastError)}
		}
	}
	if l.XDS.State == "connected" || l.CA.State == "connected" {
		return Part{Healthy, "accepted"}
	}
	return Part{Unknown, "not tried"}
}

func refused(text string) bool {
	text = strings.ToLower(text)
	return strings.Contains(text, "unauthenticated") || strings.Contains(text, "permissiondenied") || strings.Contains(text, "token")
}

func certificatePart(pods []PodStatus, err error, now time.Time) Part {
	if err != nil {
		return Part{Unknown, "the proxy cannot be asked"}
	}
	valid, expired, missing, pending := 0, 0, 0, 0
	var first *time.Time
	for _, p := range pods {
		switch {
		case !p.Proxy || p.Identity == "":
		case p.Expires != nil && !p.Expires.After(now):
			expired++
		case strings.HasPrefix(p.Certificate, "Unavailable") && p.Expires == nil:
			missing++
		case p.Expires == nil:
			pending++
		default:
			valid++
			if first == nil || p.Expires.Before(*first) {
				first = p.Expires
			}
		}
	}
	detail := fmt.Sprintf("%d valid", valid)
	if first != nil {
		detail += ", the first expires in " + ago(first.Sub(now))
	}
	if pending > 0 {
		detail += fmt.Sprintf(", %d requested", pending)
	}
	if expired+missing == 0 {
		return Part{Healthy, detail}
	}
	return Part{Degraded, fmt.Sprintf("%d expired, %d not to be had, %s", expired, missing, detail)}
}

// ago is a duration for people: at most two units, no fractions.
func ago(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Second:
		return "0s"
	case d < time.Hour:
		return d.Truncate(time.Second).String()
	case d < 2*day:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	default:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	}
}

func since(t *time.Time, now time.Time) string {
	if t == nil {
		return ""
	}
	return " for " + ago(now.Sub(*t))
}

func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}
