package hbone

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// ErrBusy is wrapped by errors about a handshake that did not get its turn.
var ErrBusy = errors.New("too many TLS handshakes")

const (
	// gatePatience bounds how long a handshake waits for its turns, together.
	gatePatience = 15 * time.Second
	// peerHandshakes is how many handshakes with one peer are under way at once.
	// Round trips and not these bound what an honest peer gets: at 2 ms each it is
	// 32,000 a second.
	peerHandshakes = 64
)

// Gate bounds what the TLS handshakes of all tunnels that share it cost, in both
// roles. A handshake computes for a moment, then waits for its peer, and so on
// for two or three steps. It computes only in a place, of which there are few;
// who waits for a peer has none. Whatever the number of handshakes, the rest of
// the process keeps its share of the CPU, and peers that open connections and
// say nothing cost no turn.
//
// Places go round the owners (pods) and their two roles, a turn each, so that a
// storm on one does not hold up the others. Of one owner's handshakes those that have begun go
// first, because what was put into them is lost when their peers give up; new
// ones come in the order of arrival. Beside that the handshakes under way with
// one peer are bounded in number; the next ones wait.
//
// Safe for concurrent use. A nil Gate bounds nothing.
type Gate struct {
	patience time.Duration
	perPeer  int

	mu      sync.Mutex
	free    int // places; none while anybody waits
	waiting int
	lanes   map[laneKey]*lane
	round   list.List // of *lane: those in which somebody waits, in order
	peers   map[peerKey]*peerSlots
}

// NewGate returns a gate with so many places, at least one: as many threads as
// handshakes may keep busy.
func NewGate(places int) *Gate {
	return &Gate{
		patience: gatePatience, perPeer: peerHandshakes, free: max(1, places),
		lanes: make(map[laneKey]*lane), peers: make(map[peerKey]*peerSlots),
	}
}

// Waiting returns how many handshakes that an owner has begun itself wait for a turn.
func (g *Gate) Waiting(owner string) int {
	if g == nil {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lanes[laneKey{owner: owner, client: true}]
	if l == nil {
		return 0
	}
	return l.begun.Len() + l.fresh.Len()
}

// laneKey is an owner in one of its roles: what it is called for and what it calls
// itself do not hold up each other.
type laneKey struct {
	owner  string
	client bool
}

// lane is where the handshakes of one owner wait.
type lane struct {
	key          laneKey
	begun, fresh list.List // of *waiter
	at           *list.Element
}

func (l *lane) empty() bool { return l.begun.Len() == 0 && l.fresh.Len() == 0 }

// waiter is granted what it waits for by closing ready, with the lock held.
type waiter struct {
	ready chan struct{}
	in    *list.List // nil once granted
	at    *list.Element
}

func wait(in *list.List) *waiter {
	w := &waiter{ready: make(chan struct{}), in: in}
	w.at = in.PushBack(w)
	return w
}

// grant takes the first waiter out of in.
func grant(in *list.List) {
	w := in.Remove(in.Front()).(*waiter)
	w.in = nil
	close(w.ready)
}

// await waits until w is granted; false: ctx ended, or the time was up.
func (w *waiter) await(ctx context.Context, patience time.Duration) bool {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-w.ready:
		return true
	case <-ctx.Done():
	case <-t.C:
	}
	return false
}

// take waits for a place, patience at most. begun: the handshake has had one.
func (g *Gate) take(ctx context.Context, key laneKey, begun bool, patience time.Duration) error {
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return nil
	}
	l := g.lanes[key]
	if l == nil {
		l = &lane{key: key}
		l.at = g.round.PushBack(l)
		g.lanes[key] = l
	}
	in := &l.fresh
	if begun {
		in = &l.begun
	}
	w := wait(in)
	g.waiting++
	g.mu.Unlock()
	if w.await(ctx, patience) {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.in == nil { // granted in this moment
		return nil
	}
	w.in.Remove(w.at)
	g.waiting--
	g.dropLocked(l)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return fmt.Errorf("%w: no turn within %s, %d wait", ErrBusy, g.patience, g.waiting)
}

// give passes a place on.
func (g *Gate) give() {
	g.mu.Lock()
	defer g.mu.Unlock()
	front := g.round.Front()
	if front == nil {
		g.free++
		return
	}
	l := front.Value.(*lane)
	if l.begun.Len() > 0 {
		grant(&l.begun)
	} else {
		grant(&l.fresh)
	}
	g.waiting--
	g.round.MoveToBack(front)
	g.dropLocked(l)
}

// dropLocked forgets a lane in which nobody waits.
func (g *Gate) dropLocked(l *lane) {
	if l.empty() {
		g.round.Remove(l.at)
		delete(g.lanes, l.key)
	}
}

// peerKey is a peer in one of its roles.
type peerKey struct {
	addr   netip.Addr
	client bool // we are
}

// peerSlots are the handshakes with one peer.
type peerSlots struct {
	n    int
	wait list.List // of *waiter
}

// enter waits until a further handshake with the peer may begin, patience at
// most; leave must follow when it returns nil.
func (g *Gate) enter(ctx context.Context, k peerKey, patience time.Duration) error {
	g.mu.Lock()
	p := g.peers[k]
	if p == nil {
		p = &peerSlots{}
		g.peers[k] = p
	}
	if p.n < g.perPeer {
		p.n++
		g.mu.Unlock()
		return nil
	}
	w := wait(&p.wait)
	g.mu.Unlock()
	if w.await(ctx, patience) {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.in == nil {
		return nil
	}
	w.in.Remove(w.at)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return fmt.Errorf("%w: %d with %s are under way, none ended within %s", ErrBusy, p.n, k.addr, g.patience)
}

// leave ends what enter began.
func (g *Gate) leave(k peerKey) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.peers[k]
	if p.wait.Len() > 0 {
		grant(&p.wait) // the slot is passed on
		return
	}
	if p.n--; p.n == 0 {
		delete(g.peers, k)
	}
}
