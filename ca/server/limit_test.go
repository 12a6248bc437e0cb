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
