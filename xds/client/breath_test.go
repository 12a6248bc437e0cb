package client

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestBreath: who worked for a while rests as long, within bounds; who did not,
// and who is not to, does not.
func TestBreath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreath()
		rested := func(worked time.Duration, items int) time.Duration {
			b.since = time.Now().Add(-worked)
			start := time.Now()
			for range items {
				b.item()
			}
			return time.Since(start)
		}
		for _, tt := range []struct {
			worked time.Duration
			items  int
			want   time.Duration
		}{
			{stretch - 1, breathItems, 0},
			{stretch, breathItems - 1, 0},
			{stretch, 1, stretch}, // the item before was the last but one
			{stretch, breathItems * 10, stretch},
			{time.Minute, breathItems, longestRest},
		} {
			if got := rested(tt.worked, tt.items); got != tt.want {
				t.Errorf("worked %s, %d items: rested %s, want %s", tt.worked, tt.items, got, tt.want)
			}
		}
		var none *breath
		for range breathItems {
			none.item()
		}
	})
}

// TestBreathBeginsWhenSynced: until somebody may be served, nothing is to wait.
func TestBreathBeginsWhenSynced(t *testing.T) {
	c := &Client{synced: make(chan struct{})}
	if c.breath() != nil {
		t.Error("rests before the world is known")
	}
	close(c.synced)
	if c.breath() == nil {
		t.Error("does not rest afterwards")
	}
}
