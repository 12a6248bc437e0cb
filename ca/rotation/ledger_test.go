package rotation

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

func all(Batch) bool { return true }

// Nothing ends earlier in the ledger than it does, and not much later.
func TestLedger(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, life := range []time.Duration{time.Second, 10 * time.Second, time.Hour, 24 * time.Hour, 90 * 24 * time.Hour} {
		var l Ledger
		for i := range 5000 {
			at := now.Add(time.Duration(i) * (life / 5000))
			l.Signed("issuer", []string{"a", "b"}, at.Add(life), at)
		}
		end := now.Add(life - life/5000 + life)
		batches, longest := l.snapshot(now)
		sum := live([]Replica{{Batches: batches}}, now, all)
		if sum.Count != 5000 || longest != life || sum.Until.Before(end) || sum.Until.After(end.Add(life/64+2*time.Second)) {
			t.Errorf("%s: %d, longest %s, until %s; the last ends at %s", life, sum.Count, longest, sum.Until, end)
		}
		if n := len(batches[0].Live); n > 600 {
			t.Errorf("%s: %d times are told apart", life, n)
		}
		if text, err := json.Marshal(batches); err != nil || len(text) > 16<<10 {
			t.Errorf("%s: %d bytes, %v", life, len(text), err)
		}
		if batches, _ = l.snapshot(end.Add(life/64 + 2*time.Second)); len(batches) != 0 {
			t.Errorf("%s: %v is kept of what has ended", life, batches)
		}
	}
}

// Whoever asks for all lifetimes that there are does not fill the store; and what they have is counted.
func TestLedgerIsBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var l Ledger
	const n = 50_000
	for i := range n {
		l.Signed("issuer", []string{"a"}, now.Add(time.Duration(i+1)*time.Minute), now)
	}
	batches, _ := l.snapshot(now)
	sum := live([]Replica{{Batches: batches}}, now, all)
	if len(batches[0].Live) > maxEnds || sum.Count != n || sum.Until.Before(now.Add(n*time.Minute)) {
		t.Errorf("%d times for %d certificates, until %s", len(batches[0].Live), sum.Count, sum.Until)
	}
	// By who signed, and by what went along.
	for i := range 3 {
		l.Signed("issuer", []string{"a", fmt.Sprint(i)}, now.Add(time.Hour), now)
		l.Signed(fmt.Sprint(i), []string{"a"}, now.Add(time.Hour), now)
	}
	batches, _ = l.snapshot(now)
	if len(batches) != 7 {
		t.Errorf("%d batches", len(batches))
	}
}
