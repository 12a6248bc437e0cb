package rotation

import (
	"context"
	"errors"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
)

// sinceLast has an authority that was put in the place of the last one while no replica ran replace that one as if they
// had: those who hold what it signed trust nobody else yet. Its key is needed for that, and kept beside the record.
func (k *Keeper) sinceLast(ctx context.Context, kept *Kept, now time.Time) (err error) {
	for range sinceLastTries {
		last := kept.Record.Last
		if k.cfg.Overlap <= 0 || len(last.Cert) == 0 || authority.CertID(last.Cert) == authority.CertID(kept.Files.Cert) || kept.Record.Fits(kept.Files) {
			return nil
		}
		var before use
		before, err = k.cfg.choose(Kept{Files: last, Record: kept.Record, Plugged: kept.Plugged}, now)
		if err != nil {
			k.cfg.Log.Warn("the CA was replaced while no control plane ran, and the one before cannot be used: there is no overlap", "from", kept.Name, "err", err)
			return nil
		}
		if err = k.judge(ctx, kept, before, now); err == nil {
			k.cfg.Log.Warn("the CA was replaced while no control plane ran", "from", kept.Name)
			return nil
		}
		if !errors.Is(err, ErrChanged) {
			return err
		}
		// Another was first, mostly a replica that has found the same and said so.
		var again error
		if *kept, again = k.cfg.Store.Read(ctx); again != nil {
			return again
		}
	}
	return err
}

// sinceLastTries is how many writes of others, one after the other, a replica that starts lets go first.
const sinceLastTries = 5

// remember writes down which authority is installed, unless it is. A failure is made good the next time.
func (k *Keeper) remember(ctx context.Context, kept Kept) {
	want := kept.Files
	if k.cfg.Overlap <= 0 {
		want = authority.Files{}
	}
	if kept.Record.guarded() || same(want, kept.Record.Last) {
		return
	}
	again, err := k.cfg.Store.Read(ctx)
	if err == nil && same(again.Files, kept.Files) && !same(again.Record.Last, want) && !again.Record.guarded() {
		next := again.Record
		next.Last = want
		err = k.cfg.Store.WriteRecord(ctx, again, next)
	}
	failed := err != nil && !errors.Is(err, ErrChanged)
	if failed && !k.forgetful {
		k.cfg.Log.Error("the CA that signs cannot be written down: one that replaces it while no control plane runs will do so without an overlap", "err", err)
	}
	k.forgetful = failed
}
