package rotation

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
)

// Prepare is the first step: a record with a new root. The caller writes it.
func Prepare(k Kept, replicas []Replica, now time.Time) (Record, error) {
	if err := checkClock(replicas, now); err != nil {
		return Record{}, err
	}
	switch {
	case k.Name == "":
		return Record{}, errors.New("there is no CA yet; start a control plane first")
	case k.Plugged:
		return Record{}, fmt.Errorf("the CA was put into %s by somebody: put another one there, and it is replaced with an overlap (--ca-overlap)", k.Name)
	case k.Record.Fits(k.Files):
		return Record{}, wrongStep("prepare", k)
	}
	next, err := authority.Successor(k.Files, now)
	if err != nil {
		return Record{}, err
	}
	if _, _, err := union(k.Files, next); err != nil {
		return Record{}, err
	}
	return Record{Phase: Prepared, Since: now, Other: next, For: authority.CertID(k.Files.Cert), Last: k.Record.Last}, nil
}

// Activate is the second step. settle is for how long the new root must have been given out.
func Activate(k Kept, replicas []Replica, settle time.Duration, now time.Time) (Record, error) {
	r := k.Record
	if !r.Fits(k.Files) || r.Phase != Prepared {
		return Record{}, wrongStep("activate", k)
	}
	if err := tooEarly(k, replicas, settle, now); err != nil {
		return Record{}, err
	}
	r.Phase, r.Since = Activated, now
	return r, nil
}

// Retire is the last step; Finish is what it leaves to be done.
func Retire(k Kept, replicas []Replica, now time.Time) (Record, error) {
	r := k.Record
	if !r.Fits(k.Files) || r.Phase != Activated {
		return Record{}, wrongStep("retire", k)
	}
	if err := tooEarly(k, replicas, 0, now); err != nil {
		return Record{}, err
	}
	both, _, err := union(k.Files, r.Other)
	if err != nil {
		return Record{}, err
	}
	if r.Other.Roots, err = without(both, r.For); err != nil {
		return Record{}, err
	}
	r.Phase, r.Since, r.Last = Retired, now, authority.Files{} // its key goes now
	return r, nil
}

// wrongStep says what is to be done instead.
func wrongStep(asked string, k Kept) error {
	switch {
	case !k.Record.Fits(k.Files):
		return fmt.Errorf("%s: no rotation is under way; begin one with `controlplane ca prepare`", asked)
	case k.Record.Phase == Replacing:
		return fmt.Errorf("%s: the CA in %s is being replaced, which ends by itself; `controlplane ca status` says when", asked, k.Name)
	case k.Record.Phase == Prepared:
		return fmt.Errorf("%s: a root is prepared and does not sign yet; the next step is `controlplane ca activate`", asked)
	case k.Record.Phase == Activated:
		return fmt.Errorf("%s: the new root signs already; the next step is `controlplane ca retire`", asked)
	}
	return fmt.Errorf("%s: the old root is retired, and the new one about to be put in its place; try again in a moment", asked)
}

// tooEarly says what keeps the next step of a guarded rotation from being taken; all of it.
func tooEarly(k Kept, replicas []Replica, settle time.Duration, now time.Time) error {
	var errs []error
	if err := checkClock(replicas, now); err != nil {
		errs = append(errs, err)
	}
	if left := k.Record.Since.Add(settle); now.Before(left) {
		errs = append(errs, fmt.Errorf("the new root has not been given out for long enough, so that not all who read it from a file have it: wait until %s", stamp(left)))
	}
	if !slices.ContainsFunc(replicas, func(r Replica) bool { return r.heard(k.Record.step(), now) }) {
		errs = append(errs, fmt.Errorf("no control plane has written within %s that it is at this step by the clock of this host (%s), so that nobody knows what is signed: have one run, and set a clock that is wrong", recent, stamp(now)))
	}
	for _, r := range replicas {
		if until := r.until(); r.Step != k.Record.step() && now.Before(until) {
			errs = append(errs, r.absent())
		}
	}
	if need := needed(k.Record, replicas, now); need.Count > 0 {
		what := "that are valid were signed by the old root"
		if k.Record.Phase == Prepared {
			what = "that are valid were given out without the new root"
		}
		errs = append(errs, fmt.Errorf("%d SVIDs %s: wait until %s, when the last of them has ended", need.Count, what, stamp(need.Until)))
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("too early: %w", errors.Join(errs...))
}

// needed counts the certificates that would be cut off by the next step.
func needed(r Record, replicas []Replica, now time.Time) Live {
	next := authority.CertID(r.Other.Cert)
	return live(replicas, now, func(b Batch) bool {
		if r.Phase == Prepared {
			return !slices.Contains(b.Roots, next)
		}
		return b.Issuer == r.For
	})
}
