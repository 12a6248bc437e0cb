package kube

import (
	"log/slog"
	"sync"
	"time"
)

const (
	// silent is how long nothing may be heard of a kind before that is a problem: API
	// servers send a bookmark a minute down every watch.
	silent = 3 * time.Minute
	// slow is how long an answer may take before that is one. What lies between may hold
	// back the beginning of an answer until there is something in it, such as a bookmark.
	slow = 70 * time.Second
)

// contact is what is known of the way to one kind's objects. It logs when that breaks
// and when it is whole again, and nothing in between.
type contact struct {
	kind string
	log  *slog.Logger

	mu     sync.Mutex
	err    error     // nil while it is whole
	heard  time.Time // when the API server last said something about the kind
	asked  time.Time // when it was asked something that it has not answered; zero for nothing
	absent bool      // the API server does not know the kind
}

// asks notes a question to the API server, until the function that is returned is called.
func (c *contact) asks(now time.Time) (answered func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = now
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.asked = time.Time{}
	}
}

// whole notes that the API server answered.
func (c *contact) whole(now time.Time) {
	c.mu.Lock()
	was := c.err
	c.err, c.heard = nil, now
	c.mu.Unlock()
	if was != nil {
		c.log.Info("the API server answers again", "kind", c.kind)
	}
}

// broken notes that it did not, or not as it should.
func (c *contact) broken(err error) {
	c.mu.Lock()
	was := c.err
	c.err = err
	c.mu.Unlock()
	if was == nil {
		c.log.Warn("cannot read from the API server: what was last read stays", "kind", c.kind, "err", err)
	}
}

// exists notes whether the API server knows the kind.
func (c *contact) exists(yes bool) {
	c.mu.Lock()
	was := c.absent
	c.absent = !yes
	c.mu.Unlock()
	switch {
	case was && yes:
		c.log.Info("the API server has this kind now", "kind", c.kind)
	case !was && !yes:
		c.log.Info("the API server does not have this kind: asking again", "kind", c.kind)
	}
}

// status fills in what is known here.
func (c *contact) status(now time.Time) Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Kind: c.kind, Absent: c.absent, Heard: c.heard}
	switch {
	case c.err != nil:
		s.Err = c.err.Error()
	case !c.asked.IsZero() && now.Sub(c.asked) > slow:
		s.Err = "the API server has not answered for more than " + slow.String()
	case !c.absent && !c.heard.IsZero() && now.Sub(c.heard) > silent:
		s.Err = "the API server has said nothing for more than " + silent.String()
	}
	return s
}
