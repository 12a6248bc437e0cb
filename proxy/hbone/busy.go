package hbone

import (
	"sync/atomic"
	"time"
)

const (
	// busyAfter is for how long a tunnel has to carry bulk before it counts as
	// busy: connections that begin at the same time share one and take turns.
	busyAfter = 250 * time.Millisecond
	// busyPause without bulk ends that.
	busyPause = 100 * time.Millisecond
	// maxBusy is how many tunnels for a key may be there before a new stream goes
	// to a busy one.
	maxBusy = 4
	// spareWait is how long a dial is waited for that a busy tunnel can replace.
	spareWait = 250 * time.Millisecond
)

// bulkTime is since when, and when last, one direction of a tunnel carried bulk, in
// nanoseconds of the tunnel's life. One goroutine at a time writes, any may read.
type bulkTime struct{ since, last atomic.Int64 }

func (b *bulkTime) seen(now time.Duration) {
	if last := b.last.Load(); last == 0 || now-time.Duration(last) > busyPause {
		b.since.Store(int64(now))
	}
	b.last.Store(int64(now))
}

func (b *bulkTime) busy(now time.Duration) bool {
	last := time.Duration(b.last.Load())
	return last != 0 && now-last <= busyPause && last-time.Duration(b.since.Load()) >= busyAfter
}

// isBusy says whether a message on the tunnel would wait behind bulk.
func (t *tunnel) isBusy() bool {
	now := t.now()
	return t.sending.busy(now) || t.receiving.busy(now)
}
