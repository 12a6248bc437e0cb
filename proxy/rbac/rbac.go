// Package rbac decides whether a connection may reach a workload.
//
// Kind: pure. Policies of a View and the facts of a connection go in, a Verdict
// comes out. The proxy asks it for every connection that arrives, tunnelled or
// plaintext, and again for live ones whenever the View changes.
//
// The order is fixed: a matching DENY refuses; a policy that the workload names
// but that is unknown refuses, because what it would have said is not known, and
// one that can be about strict mTLS only refuses clients without an identity; with
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
	// DryRun holds what policies in dry run would have done, each that matches.
	DryRun []DryRun
}

// DryRun is what a policy in dry run would have done, or, without a policy, all
// of those that allow together.
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
	reasonStrict     = "policy not known yet, so mTLS is strict: "

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
	e := evaluation{facts: newFacts(c)}
	e.all(v, dst)
	verdict := Verdict{DryRun: e.dryDeny}
	switch {
	case e.deny != nil:
		verdict.Policy = e.deny.ResourceName()
		verdict.Reason, verdict.Message = reasonDenied+verdict.Policy, MessageDeny
		return verdict
	case e.missing != "":
		verdict.Policy = e.missing
		verdict.Reason, verdict.Message = reasonMissing+e.missing, MessageMissing
		if workload.StrictOnly(e.missing) {
			verdict.Reason = reasonStrict + e.missing
		}
		return verdict
	}
	switch {
	case len(e.dryAllow) > 0:
		verdict.DryRun = append(verdict.DryRun, e.dryAllow...)
	case e.anyDryAllow:
		verdict.DryRun = append(verdict.DryRun, DryRun{Message: MessageDryNoneAllow})
	}
	switch {
	case !e.anyAllow:
		verdict.Allowed, verdict.Message = true, MessageNoPolicies
	case e.allow != nil:
		verdict.Allowed, verdict.Message, verdict.Policy = true, MessageAllow, e.allow.ResourceName()
	default:
		verdict.Reason, verdict.Message = ReasonNotAllowed, MessageNoAllow
	}
	return verdict
}

// evaluation is one connection against the policies of one workload, each of
// which is looked at once.
type evaluation struct {
	facts facts

	deny, allow           *workload.Policy // the first that match
	missing               string           // the first that the workload wants, the view lacks and that might refuse
	dryDeny, dryAllow     []DryRun         // all in dry run that match
	anyAllow, anyDryAllow bool             // there are some, matching or not
}

// all looks at the policies that guard dst.
func (e *evaluation) all(v *workload.View, dst *workload.Workload) {
	for _, p := range v.GlobalPolicies() {
		e.see(p)
	}
	for _, p := range v.NamespacePolicies(dst.Namespace) {
		e.see(p)
	}
	for _, name := range dst.Policies {
		switch p := v.Policy(name); {
		case p != nil:
			e.see(p)
		case e.missing != "" || e.facts.known && workload.StrictOnly(name):
		default:
			e.missing = name
		}
	}
}

// see takes a policy into account. Once a denial has matched, only what is in dry
// run can add something.
func (e *evaluation) see(p *workload.Policy) {
	switch {
	case p.DryRun && p.Action == workload.Deny:
		if e.facts.match(p) {
			e.dryDeny = append(e.dryDeny, DryRun{Message: MessageDryDeny, Policy: p.ResourceName()})
		}
	case e.deny != nil:
	case p.DryRun:
		e.anyDryAllow = true
		if e.facts.match(p) {
			e.dryAllow = append(e.dryAllow, DryRun{Message: MessageDryAllow, Policy: p.ResourceName()})
		}
	case p.Action == workload.Deny:
		if e.facts.match(p) {
			e.deny = p
		}
	default:
		e.anyAllow = true
		if e.allow == nil && e.facts.match(p) {
			e.allow = p
		}
	}
}
