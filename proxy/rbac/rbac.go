// Package rbac decides whether a connection may reach a workload.
//
// Kind: pure. Policies of a View and the facts of a connection go in, a Verdict
// comes out. The proxy asks it for every connection that arrives, tunnelled or
// plaintext, and again for live ones whenever the View changes.
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

// Evaluate applies the policies of a workload to a connection to it. A nil
// workload is denied.
func Evaluate(v *workload.View, dst *workload.Workload, c Connection) Verdict {
	return Verdict{Reason: "rbac: not built yet"}
}
