package h2

import "time"

// maxWindow is the largest flow-control window (RFC 9113 §6.9.1).
const maxWindow = 1<<31 - 1

// initialWindow is every window before SETTINGS and WINDOW_UPDATE (§6.9.2).
const initialWindow = 65535

// growHorizon is how fast an application must take a whole window's worth for
// the window to grow: a window then covers the round trip of any path shorter
// than that, and a stream with little traffic stays where it started.
const growHorizon = 250 * time.Millisecond

// recvWindow is the credit that we give a peer. At any time
// avail + held + pending == size, where held is what the application has not
// taken yet.
type recvWindow struct {
	size    int64         // the window as a whole
	avail   int64         // what the peer may still send
	pending int64         // taken by the application, not yet returned to the peer
	grown   int64         // of size, what the budget gave
	since   time.Duration // when the count below began
	count   int64         // taken by the application since then
}

func newRecvWindow(size int64, now time.Duration) recvWindow {
	return recvWindow{size: size, avail: size, since: now}
}

// arrive accounts for n bytes from the peer; false: more than it may send. Nothing may
// be sent also where a change of SETTINGS has left less than no credit (§6.9.2).
func (w *recvWindow) arrive(n int64) bool {
	if n > max(0, w.avail) {
		return false
	}
	w.avail -= n
	return true
}

// held is what arrived and was not taken.
func (w *recvWindow) held() int64 { return w.size - w.avail - w.pending }

// taken accounts for n bytes that the application took. It says whether it is
// time to return credit: at a quarter of the window, so that a peer sees an
// update for every quarter and not for every frame.
func (w *recvWindow) taken(n int64) bool {
	n = min(n, w.held())
	w.pending += n
	w.count += n
	return w.pending >= w.size/4
}

// grow doubles the window, up to limit and as far as budget allows, when the
// application took a window's worth within the horizon and left little lying.
func (w *recvWindow) grow(now time.Duration, limit int64, budget *Budget) {
	if w.count < w.size {
		return
	}
	fast := now-w.since <= growHorizon
	w.count, w.since = 0, now
	if !fast || w.size >= limit || w.held() > w.size/4 {
		return
	}
	n := min(w.size, limit-w.size)
	if !budget.grow(n) {
		return
	}
	w.size += n
	w.grown += n
	w.pending += n
}

// shrink keeps back credit that is due when the budget is overdrawn, so much that
// half of the window stays at least: what it grew by before the rest. It says
// whether memory is so short that the window must not grow.
func (w *recvWindow) shrink(budget *Budget) bool {
	var n int64
	switch {
	case budget.tight():
		n = w.size - initialWindow
	case budget.over():
		n = w.grown
	default:
		return false
	}
	n = max(0, min(n, w.size/2, w.pending))
	w.size -= n
	w.pending -= n
	back := min(n, w.grown)
	w.grown -= back
	budget.Put(back)
	return true
}

// move applies a change of the initial window, as the peer does (§6.9.2). A window that
// would be too small to be of use, having shrunk before, gets what is missing as credit.
func (w *recvWindow) move(delta int64) {
	w.size += delta
	w.avail += delta
	if low := initialWindow - w.size; low > 0 {
		w.size += low
		w.pending += low
	}
}

// refill returns the credit to announce and counts it as given.
func (w *recvWindow) refill() int64 {
	n := w.pending
	w.avail += n
	w.pending = 0
	return n
}

// release gives the budget back what the window grew by.
func (w *recvWindow) release(budget *Budget) {
	budget.Put(w.grown)
	w.grown = 0
}
