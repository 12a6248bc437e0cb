package hbone

import (
	"testing"

	"github.com/warren-mesh/warren/proxy/hbone/h2"
)

// TestEventsAreNotHoarded: DATA by the byte makes many events at once; their room
// is not kept.
func TestEventsAreNotHoarded(t *testing.T) {
	var u tunnel
	u.keep(make([]h2.Event, keptEvents))
	if cap(u.evs) != keptEvents || len(u.evs) != 0 {
		t.Errorf("a usual number: room for %d", cap(u.evs))
	}
	u.segs = make([][]byte, 1000)
	u.keep(make([]h2.Event, keptEvents+1))
	if cap(u.evs)+cap(u.segs) != 0 {
		t.Errorf("a flood: room for %d, %d", cap(u.evs), cap(u.segs))
	}
}
