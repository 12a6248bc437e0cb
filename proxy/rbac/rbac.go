// Package rbac decides whether a connection may reach a workload.
//
// Kind: pure. Policies of a View and the facts of a connection go in, a Verdict
// comes out. The proxy asks it for every connection that arrives, tunnelled or
// plaintext, and again for live ones whenever the View changes.
//
// The order is fixed: a matching DENY refuses; a policy that the workload names
// but that is unknown refuses, because what it would have said is not known; with
// no ALLOW policy everything else passes; with any, one must match. Policies in
// dry run are recorded and change nothing.
package rbac

import (
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/xds/workload"
)

// Connection is what policies can look at.
type Connection struct {
	// Src is the TCP peer.
	Src netip.AddrPort
	// Dst is the workload's address with the port the application listens on.
	Dst netip.AddrPort
	// Peer is the identity proved by TLS; zero for plaintext.
	Peer spiffeid.ID
}

// Verdict is the answer.
type Verdict struct {
	Allowed bool
	// Policy that decided, as "namespace/name"; empty when none did.
	Policy string
	// Reason is empty if allowed, else the text for the access log.
	Reason string
	// Message says in constant words how the answer came about.
	Message string
	// DryRun holds what policies in dry run would have done.
	DryRun []DryRun
}

// DryRun is what a policy in dry run, or all of them together, would have done.
type DryRun struct {
	Message string
	Policy  string // "namespace/name"; empty when none matched
}

// Texts of Verdict and DryRun. Operators and Istio's tools look for them.
const (
	ReasonNotAllowed = "allow policies exist, but none allowed"
	ReasonNoWorkload = "workload not found"
	reasonDenied     = "explicitly denied by: "
	reasonMissing    = "policy not known yet: "

	MessageDeny         = "deny policy match"
	MessageMissing      = "policy missing"
	MessageNoPolicies   = "no allow policies, allow"
	MessageAllow        = "allow policy match"
	MessageNoAllow      = "no allow policies matched"
	MessageNoWorkload   = "workload not found"
	MessageDryDeny      = "dry-run: deny policy match"
	MessageDryAllow     = "dry-run: allow policy match"
	MessageDryNoneAllow = "dry-run: no allow policies match"
)

// Evaluate applies the policies of a workload to a connection to it. A nil
// workload is refused. It allocates only to name a policy that decided.
func Evaluate(v *workload.View, dst *workload.Workload, c Connection) Verdict {
	if dst == nil {
		return Verdict{Reason: ReasonNoWorkload, Message: MessageNoWorkload}
	}
	e := evaluation{view: v, dst: dst, facts: newFacts(c)}
	var verdict Verdict
	e.dryRun(workload.Deny, &verdict)
	deny, _, missing := e.first(workload.Deny, false)
	switch {
	case deny != nil:
		verdict.Policy = deny.ResourceName()
		verdict.Reason, verdict.Message = reasonDenied+verdict.Policy, MessageDeny
		return verdict
	case missing != "":
		verdict.Policy = missing
		verdict.Reason, verdict.Message = reasonMissing+missing, MessageMissing
		return verdict
	}
	e.dryRun(workload.Allow, &verdict)
	allow, any, _ := e.first(workload.Allow, false)
	switch {
	case !any:
		verdict.Allowed, verdict.Message = true, MessageNoPolicies
	case allow != nil:
		verdict.Allowed, verdict.Message, verdict.Policy = true, MessageAllow, allow.ResourceName()
	default:
		verdict.Reason, verdict.Message = ReasonNotAllowed, MessageNoAllow
	}
	return verdict
}

// evaluation is one connection against the policies of one workload.
type evaluation struct {
	view  *workload.View
	dst   *workload.Workload
	facts facts
}

// first finds the first policy of an action that matches. any says whether there
// is one of that action at all, missing names a policy that the workload wants
// but the view lacks.
func (e *evaluation) first(action workload.Action, dryRun bool) (match *workload.Policy, any bool, missing string) {
	for _, list := range [2][]*workload.Policy{e.view.GlobalPolicies(), e.view.NamespacePolicies(e.dst.Namespace)} {
		for _, p := range list {
			if p.Action != action || p.DryRun != dryRun {
				continue
			}
			any = true
			if e.facts.match(p) {
				return p, true, missing
			}
		}
	}
	for _, name := range e.dst.Policies {
		p := e.view.Policy(name)
		if p == nil {
			if missing == "" {
				missing = name
			}
			continue
		}
		if p.Action != action || p.DryRun != dryRun {
			continue
		}
		any = true
		if e.facts.match(p) {
			return p, true, missing
		}
	}
	return nil, any, missing
}

// dryRun records what the policies of an action in dry run would do.
func (e *evaluation) dryRun(action workload.Action, verdict *Verdict) {
	p, any, _ := e.first(action, true)
	switch {
	case p != nil && action == workload.Deny:
		verdict.DryRun = append(verdict.DryRun, DryRun{Message: MessageDryDeny, Policy: p.ResourceName()})
	case p != nil:
		verdict.DryRun = append(verdict.DryRun, DryRun{Message: MessageDryAllow, Policy: p.ResourceName()})
	case any && action == workload.Allow:
		verdict.DryRun = append(verdict.DryRun, DryRun{Message: MessageDryNoneAllow})
	}
}
