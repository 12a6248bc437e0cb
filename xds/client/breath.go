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
	since time.Time
	items int
}

func newBreath() *breath { return &breath{since: time.Now()} }

// item says that one item has been handled.
func (b *breath) item() {
	if b == nil {
		return
	}
	if b.items++; b.items%breathItems != 0 {
		return
	}
	if worked := time.Since(b.since); worked >= stretch {
		time.Sleep(min(worked, longestRest))
		b.since = time.Now()
	}
}

// breath is for one response: nil as long as nobody is served, and every moment
// counts until somebody is.
func (c *Client) breath() *breath {
	select {
	case <-c.synced:
		return newBreath()
	default:
		return nil
	}
}
