package client

import (
	"math/rand/v2"
	"time"
)

const (
	backoffMin = 10 * time.Millisecond
	backoffMax = 15 * time.Second
	// stable is how long a connection must have been useful for the next failure
	// to be a first one. A control plane that answers and hangs up at once, again
	// and again, is thus met at an ever slower pace.
	stable = backoffMax
)

// pace spaces attempts to connect. The zero value is ready.
type pace struct{ next time.Duration }

// reset makes the next wait the shortest.
func (p *pace) reset() { p.next = 0 }

// wait is how long to wait now: twice as long as the last time, of which up to
// half is left to chance, so that the proxies of a mesh do not return all at once.
func (p *pace) wait() time.Duration {
	d := max(p.next, backoffMin)
	p.next = min(2*d, backoffMax)
	return d/2 + rand.N(d/2+1)
}
