package rotation

import (
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxEnds bounds the times that a batch tells apart; more are taken for the next later one.
const maxEnds = 2048

// Batch counts certificates of one issuer whose holders were told the same roots.
type Batch struct {
	Issuer string        `json:"issuer"`
	Roots  []string      `json:"roots"`
	Live   map[int64]int `json:"live"` // how many end at a time, in Unix seconds, rounded up
}

// Ledger counts the certificates that were signed and are valid. Safe for concurrent use.
type Ledger struct {
	mu      sync.Mutex
	batches map[string]*Batch
	longest time.Duration
}

// expect says for how long certificates will be valid at least, unless they are asked for otherwise.
func (l *Ledger) expect(life time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest = max(l.longest, life)
}

// Signed counts a certificate.
func (l *Ledger) Signed(issuer string, roots []string, notAfter, now time.Time) {
	life := notAfter.Sub(now)
	end := roundUp(notAfter.Unix()+1, life)
	key := issuer + " " + strings.Join(roots, " ")
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.batches[key]
	if b == nil {
		if l.batches == nil {
			l.batches = map[string]*Batch{}
		}
		b = &Batch{Issuer: issuer, Roots: slices.Clone(roots), Live: map[int64]int{}}
		l.batches[key] = b
	}
	if _, known := b.Live[end]; !known && len(b.Live) >= maxEnds {
		b.makeRoom(now)
		end = b.later(end)
	}
	b.Live[end]++
	l.longest = max(l.longest, life)
}

// roundUp keeps the times that are told apart to a few hundred for each length of life.
func roundUp(end int64, life time.Duration) int64 {
	grid := int64(1) << bits.Len64(uint64(max(0, int64(life/time.Second)/256)))
	return (end + grid - 1) / grid * grid
}

func (b *Batch) makeRoom(now time.Time) {
	for end := range b.Live {
		if end <= now.Unix() {
			delete(b.Live, end)
		}
	}
}

// later finds a time that is told apart already, and not before end if there is one.
func (b *Batch) later(end int64) int64 {
	if len(b.Live) < maxEnds {
		return end
	}
	best, last := int64(0), int64(0)
	for e := range b.Live {
		if e >= end && (best == 0 || e < best) {
			best = e
		}
		last = max(last, e)
	}
	if best != 0 {
		return best
	}
	n := b.Live[last] // those that end last are said to end later
	delete(b.Live, last)
	b.Live[end] = n
	return end
}

// snapshot is what is valid now, and the longest life.
func (l *Ledger) snapshot(now time.Time) ([]Batch, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Batch
	for key, b := range l.batches {
		b.makeRoom(now)
		if len(b.Live) == 0 {
			delete(l.batches, key)
			continue
		}
		live := make(map[int64]int, len(b.Live))
		for end, n := range b.Live {
			live[end] = n
		}
		out = append(out, Batch{Issuer: b.Issuer, Roots: b.Roots, Live: live})
	}
	slices.SortFunc(out, func(a, b Batch) int {
		return strings.Compare(a.Issuer+strings.Join(a.Roots, ""), b.Issuer+strings.Join(b.Roots, ""))
	})
	return out, l.longest
}

// Live is a number of certificates, and when the last of them ends.
type Live struct {
	Count int       `json:"count"`
	Until time.Time `json:"until,omitzero"`
}

func (l *Live) add(n int, until time.Time) {
	l.Count += n
	if until.After(l.Until) {
		l.Until = until
	}
}

// live counts what replicas signed that is valid and that match picks.
func live(replicas []Replica, now time.Time, match func(Batch) bool) Live {
	var sum Live
	for _, r := range replicas {
		for _, b := range r.Batches {
			if !match(b) {
				continue
			}
			for end, n := range b.Live {
				if t := time.Unix(end, 0); t.After(now) {
					sum.add(n, t)
				}
			}
		}
	}
	return sum
}
