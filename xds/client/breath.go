package client

import "time"

const (
	// stretch is how long we work before we rest. Go gives a goroutine 10 ms
	// before it looks after others, and a thread that is kept busy does not look
	// at the network either: on a small machine traffic would wait as long, again
	// and again, while 100,000 workloads are taken in.
	stretch = 200 * time.Microsecond
	// longestRest bounds a rest: who was held up meanwhile has worked less than
	// the clock says.
	longestRest = time.Millisecond
	// breathItems is how many items are handled between two looks at the clock.
	breathItems = 32
)

// breath interrupts work that goes item by item, so that it takes half of a
// thread at most. A nil one does not. (To yield is not enough: a thread without
// other goroutines takes up the same one again without having looked around.)
type breath struct {
	since time.Time // when this stretch of work began
	last  time.Time // when the last piece of work ended
	items int
}

// begin says that a piece of work begins. One that follows on the end of another at
// once is of the same stretch: many responses that come together are work that goes
// on for long, too.
func (b *breath) begin() {
	if now := time.Now(); now.Sub(b.last) > stretch {
		b.since = now // there was nothing to do
	}
	b.look()
}

// end says that the piece of work is over.
func (b *breath) end() {
	if b != nil {
		b.last = time.Now()
	}
}

// item says that one item has been handled.
func (b *breath) item() {
	if b == nil {
		return
	}
	if b.items++; b.items%breathItems == 0 {
		b.look()
	}
}

func (b *breath) look() {
	if worked := time.Since(b.since); worked >= stretch {
		time.Sleep(min(worked, longestRest))
		b.since = time.Now()
	}
}

// resting is b for one response, of which end is to be called: nil as long as nobody
// is served, and every moment counts until somebody is.
func (c *Client) resting(b *breath) *breath {
	if !c.serving() {
		return nil
	}
	b.begin()
	return b
}

// serving says whether the mesh is known.
func (c *Client) serving() bool {
	select {
	case <-c.synced:
		return true
	default:
		return false
	}
}
