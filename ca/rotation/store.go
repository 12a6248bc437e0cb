package rotation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
)

// ErrChanged is a Store's answer to a write that another was before.
var ErrChanged = errors.New("the CA's store was changed at the same time; look at its status and try again")

// Kept is what a store holds at one time.
type Kept struct {
	Files   authority.Files // installed
	Name    string          // where Files come from, for messages; empty for nothing there
	Plugged bool            // somebody put them there, and replaces them
	Record  Record
	Version string // of Record, for the store
}

// Store is where an authority and what is known of its rotation are kept, for all replicas.
type Store interface {
	// Read returns what is there. It reads the record before the authority, which changes in the last step of a
	// rotation, before the record is cleared. An error with a name in Kept is about what is there, one without about
	// reaching it.
	Read(ctx context.Context) (Kept, error)
	// Create makes an authority, unless there is one by then.
	Create(ctx context.Context, now time.Time) error
	// PutBack writes an authority of ours that has gone.
	PutBack(ctx context.Context, f authority.Files) error
	// Install puts f in the place of what is installed.
	Install(ctx context.Context, f authority.Files) error
	// WriteRecord replaces the record of k, or fails with ErrChanged.
	WriteRecord(ctx context.Context, k Kept, r Record) error
	// Publish gives the roots to those who read them from the store.
	Publish(ctx context.Context, roots []byte) error
	// Replicas returns what each replica has written about itself.
	Replicas(ctx context.Context) ([]Replica, error)
	// WriteReplica replaces what a replica has written, and removes those named.
	WriteReplica(ctx context.Context, r Replica, remove []string) error
}

// Replica is what one replica has to say for the others.
type Replica struct {
	Name    string        `json:"name"`
	At      time.Time     `json:"at"`              // when it was written
	Step    string        `json:"step"`            // that the replica is at
	Ended   bool          `json:"ended,omitempty"` // it signs no more
	Longest time.Duration `json:"longest"`         // longest certificate that it signed
	Batches []Batch       `json:"batches,omitempty"`
}

// silence is for how long a replica that cannot write may still sign: until the credentials that it knows (30 s) and
// what it has written (saveEvery) are older, with much room.
const silence = 5 * time.Minute

// recent is for how long a replica is known to be there after it wrote, some times saveEvery, and how far a clock may be
// from those of the replicas: what a fast one takes for over may be valid, and one that is more than this ahead hears of
// nobody.
const recent = 30 * time.Second

// checkClock refuses a time that replicas were past when they wrote: what is written down at it would count too early.
func checkClock(replicas []Replica, now time.Time) error {
	for _, r := range replicas {
		if r.At.Sub(now) > recent {
			return fmt.Errorf("this host's clock is at %s, and replica %s wrote at %s: set the clock of the one that is wrong; if it is that of a replica that is gone, remove what it wrote (in the ConfigMap warren-ca-issued, or the folder issued) once nothing can be valid that it signed", stamp(now), r.Name, stamp(r.At))
		}
	}
	return nil
}

// heard says whether r signs, and is at a step.
func (r Replica) heard(step string, now time.Time) bool {
	return !r.Ended && r.Step == step && now.Sub(r.At) <= recent
}

// until is how long certificates can be valid that r signed and did not write about.
func (r Replica) until() time.Time {
	if r.Ended {
		return time.Time{}
	}
	return r.At.Add(silence + r.Longest)
}
