// Package svid keeps the certificates of a node: one for each identity that some pod holds, fetched when first needed,
// renewed at half its life, dropped when the last holder is gone.
//
// Kind: core. It knows no wire protocol: certificates come from a Signer (package ca/source/...), time from package
// time, and results leave as *mtls.Identity. Used by proxy, which holds a Lease for each pod.
//
// # Who may use what
//
// A certificate is shared by all pods of an identity, but used only through a Lease, which belongs to one holder (a pod
// UID). Forget of the holder ends its leases at once, even while other pods keep the certificate alive. When the last
// holder of an identity is gone the key is dropped with it.
//
// # The owner and its heaps
//
// Run is the only goroutine that decides when a certificate is asked for. It sleeps until the earliest entry of a heap
// of deadlines, moves due entries to a heap of work ordered by priority, and starts calls while fewer than MaxInFlight
// are under way, one an identity, and a node-wide token bucket has something left. There is no timer and no goroutine
// for a certificate at rest.
//
// # Fairness
//
// What a connection waits for goes before what is fetched ahead, and that before renewals; a renewal whose certificate is
// in use and about to end counts as waited for. Within a priority those that have not failed go first, then the oldest.
// Requests that have failed before hold at most half of the places, so that identities that a source never answers for
// do not hold up the others; background requests leave a quarter of the bucket to those that somebody waits for.
//
// # Reuse
//
// See Reuse: what another pod's certificate of the same identity may be used for.
package svid

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// Signer is a certificate source to which we bring a signing request for a key that we made.
type Signer interface {
	// Sign asks for a certificate for id. The answer is PEM, leaf first and then its intermediates; the last element
	// holds the roots of id's trust domain. Each element may hold several certificates. The certificate must be for
	// the CSR's key and for exactly id; the manager checks. An error may be a *RetryAfterError or a *PermanentError.
	// Sign must return soon after ctx ends.
	Sign(ctx context.Context, id spiffeid.ID, csrPEM []byte, ttl time.Duration) (chainPEM []string, err error)
}

// RetryAfterError is a source's wish to be left alone for a while; all requests pause, since such limits are counted
// by caller.
type RetryAfterError struct {
	After time.Duration
	Err   error
}

func (e *RetryAfterError) Error() string { return e.Err.Error() }

// Unwrap gives the source's own error.
func (e *RetryAfterError) Unwrap() error { return e.Err }

// PermanentError says that asking again soon gives the same answer. Callers that wait are told at once; the request is
// still repeated with back-off, because configurations get corrected.
type PermanentError struct{ Err error }

func (e *PermanentError) Error() string { return e.Err.Error() }

// Unwrap gives the source's own error.
func (e *PermanentError) Unwrap() error { return e.Err }

// ErrNotNeeded is what callers get whose holder was forgotten or whose lease was released.
var ErrNotNeeded = errors.New("the identity is no longer needed")

// ErrStopped is what callers get when the manager has ended.
var ErrStopped = errors.New("the certificate manager has stopped")

// ErrTooMany is what callers get when MaxIdentities are held already.
var ErrTooMany = errors.New("too many identities on this node")

// Priority is why a certificate is asked for. Higher goes first.
type Priority uint8

// The priorities, lowest first. A waiting request is only ever raised.
const (
	Background Priority = iota // renewal of a certificate that is still valid
	WarmUp                     // a workload landed on the node, nobody waits yet
	OnDemand                   // a connection waits, or soon would: the certificate in use is about to end
)

func (p Priority) String() string {
	switch p {
	case OnDemand:
		return "on-demand"
	case WarmUp:
		return "warm-up"
	default:
		return "background"
	}
}

// Observer is told about every request; for metrics. Its methods are called without locks held, from several
// goroutines, and must not block.
type Observer interface {
	// Started is called when a request for id leaves.
	Started(id spiffeid.ID, p Priority)
	// Finished is called when its answer is in use (err nil), refused or missing.
	Finished(id spiffeid.ID, p Priority, took time.Duration, err error)
	// Noted is called, with locks held, when something is seen that is no request's end.
	Noted(id spiffeid.ID, what Note)
}

// Note is something worth counting.
type Note string

// The notes.
const (
	Mismatch      Note = "mismatch"       // a source gave a pod other identities only
	Redacted      Note = "redacted"       // a source took an identity back
	ServedExpired Note = "served_expired" // a source sent a certificate that had ended
	ServedEarly   Note = "served_early"   // a source sent a certificate that is not valid yet: look at the clocks
	ProcessEnded  Note = "process_ended"  // the process ended by which a pod was attested
	Unconfirmed   Note = "unconfirmed"    // a pod used another one's certificate and was not given it in time
	Disagreed     Note = "disagreed"      // a source refused a pod what reuse level local would have let it use
	BundleRefused Note = "bundle_refused" // a source sent a trust domain's bundle that cannot be used
)

// Source is where certificates come from. One of Signer and Watcher is required, and a Prover where Reuse is not Strict.
type Source struct {
	Signer  Signer
	Watcher Watcher
	Prover  Prover
	Reuse   Reuse
	// Sample is how many pods in a hundred are asked for all the same at Local; default 5, negative: none.
	Sample int
}

// Config is what a Manager needs. One of Signer and Watcher is required; everything else has a default.
type Config struct {
	Signer   Signer
	Watcher  Watcher
	Prover   Prover            // for Reuse
	Reuse    Reuse             // default Strict
	Sample   int               // see Source
	Log      *slog.Logger      // default: discards
	Observer Observer          // default: none
	TTL      time.Duration     // lifetime to ask for; default 24 h
	Revoked  *mtls.Revocations // what all identities refuse of their peers; nil: nothing
	// Withdrawn is told, on a goroutine of its own, that a source has taken back what pod was using: connections made
	// with it have to end. Only a Watcher takes back.
	Withdrawn func(pod Pod, id spiffeid.ID, why error)
	// RootsChanged is told, with locks held, that some identity's peers may not be accepted any more that were. It must
	// not block.
	RootsChanged func()

	MaxInFlight   int           // calls under way at once; default 8
	PerSecond     float64       // calls begun, on average; default 50
	Burst         int           // calls begun at once after a quiet time; default 500
	MaxIdentities int           // identities held at once; default 4096
	CallTimeout   time.Duration // of one Sign; default 30 s
	Wait          time.Duration // longest wait of Lease.Identity; default 10 s
}

// By is how a holder came by an identity.
type By string

// The ways.
const (
	BySigning By = "signing" // a certificate was signed for our key, for all holders
	ByStream  By = "stream"  // the source streams it for this pod
	ByProof   By = "proof"   // the pod was proven to be itself here, and uses what another pod was given
)

// Condition is the state of one identity.
type Condition string

// The conditions.
const (
	Initializing Condition = "Initializing" // no certificate yet, none was refused
	Available    Condition = "Available"    // a valid certificate is held
	Unavailable  Condition = "Unavailable"  // no valid certificate; LastErr says why
)

// State is one identity in a Dump. It holds no key.
type State struct {
	ID          spiffeid.ID
	Holder      string // whose alone it is; empty when all holders share it (Signer)
	Condition   Condition
	Pod         Pod            // of Holder
	Identity    *mtls.Identity // nil unless Available
	By          By             // how the right to it was had
	Proof       Proof          // what the source said of how Holder was attested
	Until       time.Time      // unless confirmed until then, it is taken back; zero: nothing is waited for
	Holders     []string       // sorted
	Priority    Priority       // of the waiting or running request
	InFlight    bool
	NextRefresh time.Time // when the next request is due
	Failures    int       // since the last success
	LastErr     error     // of the last request; nil after a success
}

// Text is the state in words: "Available", "Initializing" or "Unavailable: why".
func (s State) Text() string {
	if s.Condition == Unavailable && s.LastErr != nil {
		return string(s.Condition) + ": " + s.LastErr.Error()
	}
	return string(s.Condition)
}
