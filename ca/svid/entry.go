package svid

import (
	"context"
	"crypto/x509"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"

	"github.com/warren-mesh/warren/ca/mtls"
)

// phase is where an entry is:
//
//	resting ──deadline, or somebody waits──▶ due ──a place is free──▶ flying ──answer──▶ resting
//	   ▲                                      │ the identity's old call still runs
//	   └──────────────── parked ◀─────────────┘ (then due again)
//	any ──last holder gone──▶ gone
type phase uint8

const (
	resting phase = iota // in Manager.timers
	due                  // in Manager.due
	parked               // in neither: waits for a cancelled call of the same identity, or for its anchor's, to come back
	flying               // a call is under way
	gone
)

// key is what there is one entry of: an identity, with a Signer; the right of one holder to an identity, with a Watcher.
type key struct {
	id     spiffeid.ID
	holder string
}

// entry is one identity. All but current is guarded by Manager.mu.
type entry struct {
	id      spiffeid.ID
	key     key
	pod     Pod // of key.holder
	current atomic.Pointer[mtls.Identity]

	holds map[string]*hold // by holder
	phase phase
	prio  Priority
	at    time.Time // when due; monotonic
	index int       // in the queue of its phase
	born  time.Time
	late  time.Time // monotonic; of current's leaf: from then on, three quarters of its life from receipt, another is urgent

	stream   *stream             // a Watcher's, open
	cancel   context.CancelFunc  // of the call under way
	epoch    int                 // of the source that the call under way is to
	roots    []*x509.Certificate // of the answer that current came with
	given    []*x509.Certificate // a Watcher's, of its newest word: whom current trusts, before what is trusted in addition
	from     int                 // epoch of the source that current is of
	by       By                  // of current
	proof    Proof               // of current
	notice   *notice             // of current
	guard    context.CancelFunc  // of the wait for the end of the process that the last stream was for; nil: none
	early    *early              // what will take current's place
	asked    *rate.Limiter       // of a Watcher
	sampled  bool                // at Local: it is asked for all the same
	borrowed bool                // at Confirm: it has used another's once
	attempts int                 // ended
	failures int                 // since the last success
	failing  time.Time           // the first of them
	mute     bool                // the source answers others, and not this one
	failed   bool                // before the call under way
	lastEnd  time.Time
	lastErr  error
	changed  chan struct{} // closed and replaced when a call ends
}

// hold is what one holder has of an entry; it lasts while it has either.
type hold struct {
	prefetched bool
	leases     map[*Lease]struct{}
}

func (e *entry) valid(wall time.Time) *mtls.Identity {
	if i := e.current.Load(); i != nil && !i.Expired(wall) {
		return i
	}
	return nil
}

// leased reports whether somebody can use the identity, rather than merely expect to.
func (e *entry) leased() bool {
	for _, h := range e.holds {
		if len(h.leases) > 0 {
			return true
		}
	}
	return false
}

// attrs are args for a log line, after those that name the pod, where the entry is one's.
func (e *entry) attrs(args ...any) []any {
	if e.pod.UID == "" {
		return args
	}
	return append([]any{"uid", e.pod.UID, "pod", e.pod.Namespace + "/" + e.pod.Name}, args...)
}
