package rotation

import (
	"context"
	"fmt"
	"time"
)

// past stands among the replicas for whoever signed before there was a ledger: another control plane, such as istiod, with
// the same root.
const past = "before-the-ledger"

// notePast has it count for as long as what it signed can be valid, where nobody has written down what this authority
// signed.
func (k *Keeper) notePast(ctx context.Context, longest time.Duration, now time.Time) error {
	all, err := k.cfg.Store.Replicas(ctx)
	if err != nil || len(all) > 0 {
		return err
	}
	k.cfg.Log.Warn("this CA was found, and nothing is written down of what it has signed: its root can be rotated when that must have ended", "after", longest)
	return k.cfg.Store.WriteReplica(ctx, Replica{Name: past, At: now, Longest: longest}, nil)
}

// absent says why a replica that is not at the step that others are at is waited for.
func (r Replica) absent() error {
	if r.Name == past {
		return fmt.Errorf("what the CA signed before %s is written down nowhere, and may be valid: wait until %s, or, if nothing of that is valid any more, remove the entry %s (in the ConfigMap warren-ca-issued, or the folder issued)", stamp(r.At), stamp(r.until()), past)
	}
	return fmt.Errorf("replica %s, last heard of at %s, is not at this step yet: wait until it is, or until %s if it is gone", r.Name, stamp(r.At), stamp(r.until()))
}
