package server

import (
	"fmt"
	"testing"
	"time"
)

// An authenticator that makes names up does not fill the memory, and a caller that has used its share up is not
// forgotten for those that have not.
func TestCallersAreForgotten(t *testing.T) {
	l := newLimits(1, 2)
	now := time.Unix(1000, 0)
	busy := Caller{Node: "busy"}
	for range 2 {
		if wait := l.take(busy, now); wait > 0 {
			t.Fatalf("wait %s within the burst", wait)
		}
	}
	for i := range maxCallers + 100 {
		l.take(Caller{Node: fmt.Sprint(i)}, now.Add(-time.Hour)) // full again by now
	}
	if n := len(l.callers); n > maxCallers {
		t.Errorf("%d callers are kept, at most %d should be", n, maxCallers)
	}
	if wait := l.take(busy, now); wait <= 0 {
		t.Error("the busy caller was forgotten")
	}
}

// Who waits for as long as it is told, and not a moment less, is served; being refused costs nothing; and the time told
// is never none.
func TestTheHintIsTrue(t *testing.T) {
	for _, rate := range []float64{0.5, 50, 1e6} {
		l := newLimits(rate, 3)
		now := time.Unix(1000, 0)
		who := Caller{Node: "n"}
		for i := range 100 {
			wait := l.take(who, now)
			if i < 3 {
				if wait != 0 {
					t.Fatalf("rate %g: %s within the burst", rate, wait)
				}
				continue
			}
			if wait < time.Millisecond || rate < 1000 && wait > time.Duration(float64(time.Second)/rate) {
				t.Fatalf("rate %g: told to wait %s", rate, wait)
			}
			if rate < 1000 && l.take(who, now.Add(wait-time.Microsecond)) == 0 {
				t.Fatalf("rate %g: served before the time", rate)
			}
			if now = now.Add(wait); l.take(who, now) != 0 {
				t.Fatalf("rate %g: refused after the time that was told", rate)
			}
			for rate >= 1000 && l.take(who, now) == 0 { // until the bucket is empty again
			}
		}
	}
}

// Requests that come with times out of order, as after checks of unequal length, are not given the time between twice.
func TestTimeDoesNotGoBack(t *testing.T) {
	l := newLimits(1, 2)
	now := time.Unix(1000, 0)
	who := Caller{Node: "n"}
	served, told := 0, 0
	for range 2 {
		l.take(Caller{Node: "hint"}, now)
	}
	if wait := l.take(Caller{Node: "hint"}, now.Add(-time.Minute)); wait != 61*time.Second {
		t.Errorf("who comes with an earlier time is told to wait %s from then, want 1m1s", wait)
	}
	for i := range 1000 {
		at := now.Add(-time.Duration(i%2) * time.Minute)
		if l.take(who, at) == 0 {
			served++
		}
		if yes, _ := l.tell(who, at); yes {
			told++
		}
	}
	if served != 2 || told != refusalBurst {
		t.Errorf("%d served at once, want 2; %d lines, want %d", served, told, refusalBurst)
	}
}

// What is left out of the log is told with the next line.
func TestSuppressedLinesAreTold(t *testing.T) {
	l := newLimits(1, 1)
	now := time.Unix(1000, 0)
	lines := 0
	for range 1000 {
		if yes, suppressed := l.tell(Caller{}, now); yes {
			lines++
			if suppressed != 0 {
				t.Error("something was left out before anything was")
			}
		}
	}
	yes, suppressed := l.tell(Caller{}, now.Add(time.Second))
	if !yes || lines != refusalBurst || suppressed != 1000-refusalBurst {
		t.Errorf("%d lines, then %v, with %d left out", lines, yes, suppressed)
	}
	if yes, suppressed = l.tell(Caller{}, now.Add(time.Second)); !yes || suppressed != 0 {
		t.Errorf("told twice: %v, %d", yes, suppressed)
	}
	if yes, suppressed = l.tell(Caller{Node: "n"}, now); !yes || suppressed != 0 {
		t.Errorf("another caller: %v, %d", yes, suppressed)
	}
}
