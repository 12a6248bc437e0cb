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
		b := &breath{}
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

// TestBreathOfMany: many small responses are one stretch of work when they come together,
// not when they come one by one.
func TestBreathOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each = stretch / 4
		for name, pause := range map[string]time.Duration{"together": 0, "apart": 2 * stretch} {
			b := &breath{}
			b.begin()
			start := time.Now()
			for range 8 {
				time.Sleep(each) // as long as one takes
				time.Sleep(pause)
				b.begin()
			}
			want := 8 * (each + pause)
			if pause == 0 {
				want += 2 * stretch
			}
			if got := time.Since(start); got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
	})
}

// TestBreathBeginsWhenSynced: until somebody may be served, nothing is to wait.
func TestBreathBeginsWhenSynced(t *testing.T) {
	c := &Client{synced: make(chan struct{})}
	if c.resting(&c.applying) != nil {
		t.Error("rests before the world is known")
	}
	close(c.synced)
	if c.resting(&c.applying) == nil {
		t.Error("does not rest afterwards")
	}
}
