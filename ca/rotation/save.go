package rotation

import (
	"context"
	"time"
)

const (
	// saveEvery bounds how often counts are written. They are a little late, which until allows for.
	saveEvery = 10 * time.Second
	// sweepEvery is how often what replicas left behind is looked at.
	sweepEvery = time.Minute
	endTimeout = 3 * time.Second
)

// saver remembers what was written of the ledger. But for wake it belongs to Load, then to the goroutine of Run, then to End.
type saver struct {
	wake    chan struct{} // capacity 1: now, please
	at      time.Time
	step    string
	longest time.Duration
	swept   time.Time
	failing bool
}

func (s *saver) soon() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Save writes this replica's counts if there is need to; Run does it.
func (k *Keeper) Save(ctx context.Context, now time.Time) { k.save(ctx, now, false) }

// save writes this replica's counts, if there is need to.
func (k *Keeper) save(ctx context.Context, now time.Time, ended bool) {
	k.mu.Lock()
	step := k.kept.Record.step()
	k.mu.Unlock()
	s := &k.saver
	if step == s.step && k.ledger.life() <= s.longest && !ended && now.Sub(s.at) < saveEvery {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := k.write(ctx, step, now, ended)
	if err != nil && !s.failing && ctx.Err() == nil {
		k.cfg.Log.Error("what was signed cannot be written down: the next step of a rotation will have to wait for longer", "err", err)
	}
	s.failing = err != nil
}

// write writes this replica's counts, and removes what replicas of before left behind.
func (k *Keeper) write(ctx context.Context, step string, now time.Time, ended bool) error {
	batches, longest := k.ledger.snapshot(now)
	s := &k.saver
	var gone []string
	if now.Sub(s.swept) >= sweepEvery {
		if all, err := k.cfg.Store.Replicas(ctx); err == nil {
			gone, s.swept = forgotten(all, k.cfg.Replica, now), now
		}
	}
	err := k.cfg.Store.WriteReplica(ctx, Replica{Name: k.cfg.Replica, At: now, Step: step, Ended: ended, Longest: longest, Batches: batches}, gone)
	if err == nil {
		s.at, s.step, s.longest = now, step, longest
	}
	return err
}

// forgotten are replicas of before, of which no certificate can be valid any more.
func forgotten(all []Replica, own string, now time.Time) (names []string) {
	for _, r := range all {
		one := []Replica{r}
		if r.Name != own && now.After(r.until()) && live(one, now, func(Batch) bool { return true }).Count == 0 {
			names = append(names, r.Name)
		}
	}
	return names
}

// End writes that this replica signs no more. Run has returned.
func (k *Keeper) End(now time.Time) {
	if k.Authority() == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	k.save(ctx, now, true)
}
