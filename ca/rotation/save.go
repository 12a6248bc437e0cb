package rotation

import (
	"context"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// saveEvery bounds how often counts are written. They are a little late, which until allows for.
	saveEvery = 10 * time.Second
	// sweepEvery is how often what replicas left behind is looked at.
	sweepEvery = time.Minute
	endTimeout = 3 * time.Second
)

// saver remembers what was written of the ledger.
type saver struct {
	longest atomic.Int64 // time.Duration; only grows

	mu      sync.Mutex // held over each write, so that what is older never comes last; guards what follows
	at      time.Time
	step    string
	swept   time.Time
	failing bool
}

// vouch has it written down that there are certificates valid for life, before the first of them is given out: a replica
// that vanishes then counts for as long as that one may be in use. Those that were given out and not counted before the end
// (saveEvery) are allowed for by until.
func (k *Keeper) vouch(life time.Duration, now time.Time) error {
	s := &k.saver
	if int64(life) <= s.longest.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if int64(life) <= s.longest.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	k.ledger.expect(coarse(life))
	if err := k.write(ctx, k.step(), now, false); err != nil {
		return fmt.Errorf("rotation: no certificate of %s is given out before it is written down that there are such: %w", life, err)
	}
	return nil
}

// coarse rounds up by an eighth at most, so that whoever asks for a little more each time causes few writes.
func coarse(d time.Duration) time.Duration {
	s := max(0, int64((d+time.Second-1)/time.Second))
	grid := int64(1) << max(0, bits.Len64(uint64(s))-4)
	return time.Duration((s+grid-1)/grid*grid) * time.Second
}

func (k *Keeper) step() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept.Record.step()
}

// Save writes this replica's counts if there is need to; Run does it.
func (k *Keeper) Save(ctx context.Context, now time.Time) { k.save(ctx, now, false) }

// save writes this replica's counts, if there is need to.
func (k *Keeper) save(ctx context.Context, now time.Time, ended bool) {
	s := &k.saver
	s.mu.Lock()
	defer s.mu.Unlock()
	step := k.step()
	if step == s.step && !ended && now.Sub(s.at) < saveEvery {
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

// write writes this replica's counts, and removes what replicas of before left behind. The caller holds saver.mu.
func (k *Keeper) write(ctx context.Context, step string, now time.Time, ended bool) error {
	batches, longest := k.ledger.snapshot(now)
	s := &k.saver
	var gone []string
	if all, err := k.cfg.Store.Replicas(ctx); err == nil { // what cannot be read is lost at the earliest when it can be
		if err := k.noteLoss(ctx, all, now); err != nil {
			return err
		}
		if now.Sub(s.swept) >= sweepEvery {
			gone, s.swept = forgotten(all, k.cfg.Replica, now), now
		}
	}
	err := k.cfg.Store.WriteReplica(ctx, Replica{Name: k.cfg.Replica, At: now, Step: step, Ended: ended, Longest: longest, Batches: batches}, gone)
	if err == nil {
		s.at, s.step = now, step
		s.longest.Store(int64(longest))
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
