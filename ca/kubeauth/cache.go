package kubeauth

import (
	"crypto/sha256"
	"sync"
	"time"
)

// digest stands for a token, which is not kept.
type digest = [sha256.Size]byte

// cache keeps what is known of tokens for a while, and not more than a number of them.
type cache[V any] struct {
	limit int

	mu      sync.Mutex
	entries map[digest]entry[V]
}

type entry[V any] struct {
	value V
	until time.Time
}

func newCache[V any](limit int) *cache[V] {
	return &cache[V]{limit: limit, entries: make(map[digest]entry[V])}
}

func (c *cache[V]) get(d digest, now time.Time) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[d]
	if !ok || !now.Before(e.until) {
		delete(c.entries, d)
		var none V
		return none, false
	}
	return e.value, true
}

func (c *cache[V]) put(d digest, v V, now, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= c.limit {
		c.makeRoomLocked(now)
	}
	c.entries[d] = entry[V]{value: v, until: until}
}

// makeRoomLocked forgets what is out of date or, should nothing be, any one.
func (c *cache[V]) makeRoomLocked(now time.Time) {
	for d, e := range c.entries {
		if !now.Before(e.until) {
			delete(c.entries, d)
		}
	}
	for d := range c.entries {
		if len(c.entries) < c.limit {
			return
		}
		delete(c.entries, d)
	}
}
