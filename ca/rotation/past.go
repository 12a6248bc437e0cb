package rotation

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// past stands among the replicas for whoever signed and is not among them: before there was a ledger, such as istiod with the
// same root, or before the ledger was lost.
const past = "before-the-ledger"

// lifetime is istiod's longest, and ours where we are not told another: whoever signed may have been told another than we.
const lifetime = 90 * 24 * time.Hour

// notePast has it count for as long as what it signed can be valid.
func (k *Keeper) notePast(ctx context.Context, ours time.Duration, why string, now time.Time) error {
	longest := max(ours, lifetime)
	k.cfg.Log.Warn(why+": its root can be rotated when what it has signed must have ended", "after", longest)
	return k.cfg.Store.WriteReplica(ctx, Replica{Name: past, At: now, Longest: longest}, nil)
}

// notFound notes the past of an authority that was found, where nobody has written down what it signed.
func (k *Keeper) notFound(ctx context.Context, u use, now time.Time) error {
	all, err := k.cfg.Store.Replicas(ctx)
	if err != nil || len(all) > 0 {
		return err
	}
	return k.notePast(ctx, u.ca.TTL().MaxTTL, "this CA was found, and nothing is written down of what it has signed", now)
}

// noteLoss notes it where what this replica wrote has gone: with it may have gone what those wrote that run no more, and
// nobody else would ever miss that. One that has not written for so long that others forget it has not lost anything. The
// caller holds saver.mu.
func (k *Keeper) noteLoss(ctx context.Context, all []Replica, now time.Time) error {
	s := &k.saver
	own := Replica{Name: k.cfg.Replica, At: s.at, Longest: time.Duration(s.longest.Load())}
	ca := k.Authority()
	if ca == nil || slices.ContainsFunc(all, func(r Replica) bool { return r.Name == own.Name }) || now.After(own.until()) {
		return nil
	}
	return k.notePast(ctx, ca.TTL().MaxTTL, "what control planes wrote down of what this CA has signed was removed", now)
}

// absent says why a replica that is not at the step that others are at is waited for.
func (r Replica) absent() error {
	if r.Name == past {
		return fmt.Errorf("what the CA signed before %s is written down nowhere, and may be valid: wait until %s, or, if nothing of that is valid any more, remove the entry %s (in the ConfigMap warren-ca-issued, or the folder issued)", stamp(r.At), stamp(r.until()), past)
	}
	return fmt.Errorf("replica %s, last heard of at %s, is not at this step yet: wait until it is, or until %s if it is gone", r.Name, stamp(r.At), stamp(r.until()))
}
