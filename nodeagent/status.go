package nodeagent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/warren-mesh/warren/nodeagent/enroll"
)

// The verdicts on a node and on its parts.
const (
	Healthy  = "healthy"
	Degraded = "degraded"
	Unknown  = "unknown" // nobody could say; that alone is no fault
)

// Status is how a node is. It is what the status socket answers, in JSON, and
// what `nodeagent status -o json` prints.
type Status struct {
	Node    string    `json:"node"`
	Time    time.Time `json:"time"`
	Verdict string    `json:"verdict"` // Healthy or Degraded
	// Problems are the reasons for Degraded, in words.
	Problems []string `json:"problems,omitempty"`

	Agent        Part `json:"agent"`
	Plugin       Part `json:"plugin,omitzero"` // none where the agent does not install it
	Probes       Part `json:"probes,omitzero"` // none where nothing is done for them
	Proxy        Part `json:"proxy"`
	ControlPlane Part `json:"controlPlane"`
	CA           Part `json:"ca"`
	Token        Part `json:"token"`
	Certificates Part `json:"certificates"`

	Pods []PodStatus `json:"pods"`
}

// Part is one of the things that a node depends on.
type Part struct {
	State  string `json:"state"` // Healthy, Degraded or Unknown
	Detail string `json:"detail"`
}

// namedPart is a part with its name for people.
type namedPart struct {
	name string
	Part
}

// parts are those that there are, in the order in which one looks at them.
func (s Status) parts() (all []namedPart) {
	for _, p := range []namedPart{
		{"agent", s.Agent}, {"plugin", s.Plugin}, {"probes", s.Probes}, {"proxy", s.Proxy}, {"control plane", s.ControlPlane},
		{"CA", s.CA}, {"token", s.Token}, {"certificates", s.Certificates},
	} {
		if p.Part != (Part{}) {
			all = append(all, p)
		}
	}
	return all
}

// PodStatus is how one pod is. What only the proxy knows is empty, and Proxy is
// false, where it cannot be asked.
type PodStatus struct {
	Namespace   string     `json:"namespace"`
	Name        string     `json:"name"`
	UID         string     `json:"uid"`
	IPs         []string   `json:"ips,omitempty"`
	Netns       string     `json:"netns,omitempty"`   // path on the host
	NetnsID     string     `json:"netnsID,omitempty"` // device:inode
	State       string     `json:"state"`             // such as "enrolled"
	Since       *time.Time `json:"since,omitempty"`
	Redirection string     `json:"redirection"`     // "verified", what differs, or why it is not known
	Audit       string     `json:"audit,omitempty"` // what the continuous audit has found, of a pod in the mesh
	Proxy       bool       `json:"proxy"`           // the proxy was asked
	Listeners   []string   `json:"listeners,omitempty"`
	Identity    string     `json:"identity,omitempty"`
	Certificate string     `json:"certificate,omitempty"` // its state in the proxy's words
	Expires     *time.Time `json:"expires,omitempty"`
	Inbound     int        `json:"inbound"`
	Outbound    int        `json:"outbound"`
	// Outside are the connections that are older than the pod's time in the mesh, and go
	// on to their end without it; OutsideNote why that may not be as it should.
	Outside     int    `json:"outside"`
	OutsideNote string `json:"outsideNote,omitempty"`

	Reason  string `json:"reason,omitempty"`  // why it is where it is
	Problem string `json:"problem,omitempty"` // empty: none
	// Warnings are annotations that are ignored, and probes that do not get through.
	Warnings []string `json:"warnings,omitempty"`
}

// Bounds of one answer of the status socket.
const (
	verifyAtOnce = 4
	verifyWithin = 3 * time.Second
	maxDiffs     = 3 // of one pod, in words
)

// redirectionOK is the word for rules that are as they should be.
const redirectionOK = "verified"

func (a *Agent) statusHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		b, err := json.MarshalIndent(a.Status(r.Context()), "", "  ")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(b, '\n')) // the client left
	})
	return mux
}

// Status looks at everything now.
func (a *Agent) Status(ctx context.Context) Status {
	reports := a.enroll.Report()
	var asked map[string]adminPod
	var lines adminLines
	var podsErr, linesErr error
	var wg sync.WaitGroup
	wg.Go(func() { asked, podsErr = a.admin.pods(ctx) })
	wg.Go(func() { lines, linesErr = a.admin.lines(ctx) })
	redirections := a.verifyAll(ctx, reports)
	wg.Wait()

	now := time.Now()
	st := Status{Node: a.cfg.NodeName, Time: now.UTC(), Agent: a.agentPart(ctx, now), Pods: []PodStatus{}}
	st.Plugin, st.Probes = a.host.parts()
	proxies := a.proxies.State()
	st.Proxy = proxyPart(proxies, firstError(podsErr, linesErr), now)
	st.ControlPlane, st.CA, st.Token = lineParts(lines, linesErr, now)
	for i, r := range reports {
		p := podStatus(r, redirections[i])
		if podsErr == nil {
			p.fromProxy(asked)
		}
		p.Problem = problem(p, r, now)
		st.Pods = append(st.Pods, p)
	}
	st.Certificates = certificatePart(st.Pods, podsErr, now)
	st.judge()
	return st
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// verifyAll looks at the rules of all pods, a few at a time, as far as the time
// allows; the answers are in words.
func (a *Agent) verifyAll(ctx context.Context, reports []enroll.Report) []string {
	ctx, cancel := context.WithTimeout(ctx, verifyWithin)
	defer cancel()
	words := make([]string, len(reports))
	todo := make(chan int, len(reports))
	for i := range reports {
		todo <- i
	}
	close(todo)
	var wg sync.WaitGroup
	for range min(verifyAtOnce, len(reports)) {
		wg.Go(func() {
			for i := range todo {
				words[i] = a.verifyOne(ctx, reports[i])
			}
		})
	}
	wg.Wait()
	return words
}

func (a *Agent) verifyOne(ctx context.Context, r enroll.Report) string {
	if r.Redirect == nil {
		return "none"
	}
	if ctx.Err() != nil {
		return byAudit(r)
	}
	diffs, err := a.enroll.Verify(ctx, r.UID)
	switch {
	case err != nil:
		return "not checked: " + err.Error()
	case len(diffs) > maxDiffs:
		return fmt.Sprintf("differs: %s; and %d more", strings.Join(diffs[:maxDiffs], "; "), len(diffs)-maxDiffs)
	case len(diffs) > 0:
		return "differs: " + strings.Join(diffs, "; ")
	default:
		return redirectionOK
	}
}

// byAudit is what the audit found last, for a pod that a look now has no time for: where
// there are hundreds, on a busy node.
func byAudit(r enroll.Report) string {
	switch r.Proof {
	case enroll.ProofWhole, enroll.ProofSilent, enroll.ProofListeners:
		return redirectionOK
	case enroll.ProofRules:
		return "differs: " + r.Flaw
	}
	return "not checked: no time left"
}

func podStatus(r enroll.Report, redirection string) PodStatus {
	p := PodStatus{
		Namespace: r.Name.Namespace, Name: r.Name.Name, UID: r.UID, Netns: r.Netns,
		State: string(r.Phase), Redirection: redirection, Reason: r.Reason, Warnings: r.Warnings,
		Outside: r.Before, OutsideNote: r.BeforeNote,
	}
	p.Audit = because(string(r.Proof), r.Flaw)
	if r.Phase == enroll.PhaseAbsent {
		p.State = "absent"
	} else {
		p.Since = &r.Since
	}
	if !r.NetnsID.IsZero() {
		p.NetnsID = r.NetnsID.String()
	}
	for _, ip := range r.IPs {
		p.IPs = append(p.IPs, ip.String())
	}
	return p
}

// fromProxy adds what the proxy said about the pod, or that it said nothing.
func (p *PodStatus) fromProxy(asked map[string]adminPod) {
	p.Proxy = true
	a, ok := asked[p.UID]
	if !ok {
		return
	}
	p.Listeners, p.Identity, p.Certificate, p.Expires = a.Listeners, a.Identity, a.CertState, a.Expires
	p.Inbound, p.Outbound = a.Inbound, a.Outbound
	if a.Error != "" {
		p.Reason = a.Error
	}
	if a.State != "Up" && len(p.Listeners) > 0 {
		p.Listeners = nil
	}
}

// problem says what is wrong with a pod, empty if nothing is.
func problem(p PodStatus, r enroll.Report, now time.Time) string {
	switch {
	case r.Phase == enroll.PhaseLeft && r.Eligible:
		return "it belongs into the mesh and is outside: " + p.Reason
	case r.Phase == enroll.PhaseLeft:
		return ""
	case r.Phase == enroll.PhaseAbsent && r.Refusal == nil && len(r.IPs) == 0:
		return "" // it is just being made
	case r.Phase != enroll.PhaseEnrolled:
		return p.Reason
	case p.Redirection != redirectionOK:
		return "its redirection: " + p.Redirection
	case r.Proof == enroll.ProofSilent || r.Proof == enroll.ProofListeners:
		return "the audit: " + p.Audit
	case !p.Proxy:
		return ""
	case len(p.Listeners) == 0:
		return strings.TrimSuffix("the proxy has no listeners in it: "+p.Reason, ": ")
	case p.Identity == "":
		return "it has no identity: " + p.Reason
	case p.Expires != nil && !p.Expires.After(now):
		return "its certificate has expired"
	case strings.HasPrefix(p.Certificate, "Unavailable"):
		return "it has no certificate: " + p.Certificate
	default:
		return ""
	}
}

// judge collects what is wrong.
func (s *Status) judge() {
	s.Verdict = Healthy
	for _, p := range s.parts() {
		if p.State == Degraded {
			s.Problems = append(s.Problems, p.name+": "+p.Detail)
		}
	}
	for _, p := range s.Pods {
		for _, text := range append([]string{p.Problem}, p.Warnings...) {
			if text != "" {
				s.Problems = append(s.Problems, fmt.Sprintf("pod %s/%s: %s", p.Namespace, p.Name, text))
			}
		}
	}
	if len(s.Problems) > 0 {
		s.Verdict = Degraded
	}
}
