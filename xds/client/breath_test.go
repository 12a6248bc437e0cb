package client

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-mesh/warren/xds/workload"
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
		none.end()
	})
}

// TestBreathOfMany: many responses are one stretch of work when they come together, be
// they small or long, not when they come one by one.
func TestBreathOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct{ each, pause, rests time.Duration }{
			{each: stretch / 4, rests: 2 * stretch},
			{each: stretch / 4, pause: 2 * stretch},
			{each: 2 * stretch, rests: 8 * 2 * stretch},
			{each: 2 * stretch, pause: stretch / 2, rests: 8 * 5 * stretch / 2}, // what is between is work, too
			{each: 2 * stretch, pause: 2 * stretch},
		} {
			b := &breath{}
			b.begin()
			start := time.Now()
			for range 8 {
				time.Sleep(tt.each) // as long as one takes
				b.end()
				time.Sleep(tt.pause)
				b.begin()
			}
			if got, want := time.Since(start), 8*(tt.each+tt.pause)+tt.rests; got != want {
				t.Errorf("%s each, %s apart: %s, want %s", tt.each, tt.pause, got, want)
			}
		}
	})
}

// TestBreathEnds: a response that is decoded, taken in or made visible is a piece of work
// that ends.
func TestBreathEnds(t *testing.T) {
	b := &breath{}
	if err := newCodec(&workload.Sharer{}, func() *breath { return b }).Unmarshal(nil, &delivery{}); err != nil || b.last.IsZero() {
		t.Errorf("decoded: %v, ended %s", err, b.last)
	}
	bubble(t, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		f.push(response(AuthorizationType, "p1"), response(AddressType, "a1", pod("w", "1")))
		var takenIn time.Time // what it is when it becomes visible
		defer store.OnSwap(func(_, _ *workload.View) { takenIn = c.applying.last })()
		time.Sleep(time.Minute)
		before := time.Now()
		f.push(response(AddressType, "a2", pod("w", "2")))
		if !takenIn.Equal(before) {
			t.Errorf("taken in at %s: ended %s", before, takenIn)
		}
		if last := c.applying.last; !last.Equal(before.Add(gatherFor)) {
			t.Errorf("made visible %s after %s: ended %s", gatherFor, before, last)
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
