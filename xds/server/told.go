package server

import (
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// toldEntry is about what a name and its version take in memory beside their bytes.
const toldEntry = 64

// toldShares is into how many shares the budget of what clients say they have is cut: no
// caller has more than one, or one message if that is larger.
const toldShares = 8

// toldBudget bounds what clients said they have (initial_resource_versions) and have not
// been answered yet, of all together. That is over at once, but before the first snapshot:
// while the control plane starts, a whole mesh may come again.
type toldBudget struct {
	limit int64

	mu      sync.Mutex
	total   int64
	callers map[string]int64
}

func newToldBudget(limit int64) *toldBudget {
	return &toldBudget{limit: limit, callers: make(map[string]int64)}
}

// take counts n bytes more of a caller, or returns the status to end its stream with:
// clients come again by themselves.
func (b *toldBudget) take(caller string, n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	has := b.callers[caller]
	if has > 0 && has+n > b.limit/toldShares {
		return status.Errorf(codes.ResourceExhausted, "initial_resource_versions of %s's streams that wait for their first answer take %d bytes and these %d: one caller may have %d",
			caller, has, n, b.limit/toldShares)
	}
	if b.total > 0 && b.total+n > b.limit {
		return status.Errorf(codes.ResourceExhausted, "initial_resource_versions of all streams that wait for their first answer take %d bytes and these %d, the limit is %d: come again",
			b.total, n, b.limit)
	}
	b.total += n
	b.callers[caller] = has + n
	return nil
}

func (b *toldBudget) give(caller string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total -= n
	if b.callers[caller] -= n; b.callers[caller] <= 0 {
		delete(b.callers, caller)
	}
}

// toldSize is about how much memory the versions in a first request take.
func toldSize(versions map[string]string) (n int64) {
	for name, version := range versions {
		n += int64(len(name) + len(version) + toldEntry)
	}
	return n
}

// unanswered is how much memory what the client said it has takes till it is answered.
func (s *session) unanswered() (n int64) {
	for i := range s.subs {
		if s.subs[i].first {
			n += s.subs[i].toldSize
		}
	}
	return n
}

// countTold takes or gives back what has changed of unanswered.
func (c *conn) countTold() error {
	n := c.session.unanswered()
	switch more := n - c.told; {
	case more > 0:
		if err := c.server.told.take(c.caller, more); err != nil {
			c.server.stats.refused.Add(1)
			return err
		}
	case more < 0:
		c.server.told.give(c.caller, -more)
	}
	c.told = n
	return nil
}
