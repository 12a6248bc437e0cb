package track

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ErrFull is returned (wrapped) by Add when a bound is reached.
var ErrFull = errors.New("too many connections")

// Direction is which end of a connection the pod is.
type Direction uint8

// The directions, seen from the pod.
const (
	Inbound Direction = iota
	Outbound
)

// String is the word that logs and dumps use.
func (d Direction) String() string {
	if d == Outbound {
		return "outbound"
	}
	return "inbound"
}

// Facts say which connection this is. They do not change while it lives.
type Facts struct {
	Pod       string // the UID of the pod whose connection this is
	Direction Direction
	// Src is the client and Dst where the connection really goes: the
	// application's port inbound, what was dialed outbound.
	Src, Dst netip.AddrPort
	// Peer is the client's identity inbound; zero when it showed none.
	Peer     spiffeid.ID
	Protocol string // TCP, HBONE or DOUBLEHBONE
	Original string // what the client asked for, if it is known: an address or a host
}

// Bytes counts what one connection carried. The fields are those of
// relay.Counters, so that a pointer to one converts to the other.
type Bytes struct {
	Sent     atomic.Int64 // from the near end, the first argument of relay.Start
	Received atomic.Int64 // towards it
}

// Guard stands for one live connection. Whoever added it releases it.
type Guard struct {
	Facts Facts
	Bytes Bytes
	// Owner is who added the connection. It is not changed.
	Owner Owner

	r   *Registry
	id  uint64      // in order of Add
	cut atomic.Bool // Owner was told to end
}

// Owner is the other side of a guard, of which the guard may be a part.
type Owner interface {
	// Cut ends the connection. It is called at most once, from any goroutine and
	// possibly before Add has returned; it must not block and may call Release.
	Cut(reason error)
}

// Registry holds the guards. Use [New]. Its methods may be called from any
// goroutine.
type Registry struct {
	max, maxPod int

	mu   sync.Mutex
	next uint64
	all  map[*Guard]struct{}
	pods map[string]*Count
}

// Count is how many connections a pod has.
type Count struct{ Inbound, Outbound int }

// New returns an empty registry that holds at most max connections, and at most
// maxPod of one pod, so that one pod cannot lock out the others.
func New(max, maxPod int) *Registry {
	return &Registry{max: max, maxPod: maxPod, all: make(map[*Guard]struct{}), pods: make(map[string]*Count)}
}

// Add registers a connection under g, which is new and must not be copied or used
// again. On error g has been left out.
func (r *Registry) Add(g *Guard, f Facts, owner Owner) error {
	g.Facts, g.Owner, g.r = f, owner, r
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) >= r.max {
		return fmt.Errorf("track: %w on this node: %d", ErrFull, r.max)
	}
	c := r.pods[f.Pod]
	if c == nil {
		c = new(Count)
		r.pods[f.Pod] = c
	}
	if c.Inbound+c.Outbound >= r.maxPod {
		return fmt.Errorf("track: %w of this pod: %d", ErrFull, r.maxPod)
	}
	*c.of(f.Direction)++
	r.next++
	g.id = r.next
	r.all[g] = struct{}{}
	return nil
}

func (c *Count) of(d Direction) *int {
	if d == Outbound {
		return &c.Outbound
	}
	return &c.Inbound
}

// Release takes the connection out. A second call does nothing.
func (g *Guard) Release() {
	r := g.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.all[g]; !ok {
		return
	}
	delete(r.all, g)
	c := r.pods[g.Facts.Pod]
	*c.of(g.Facts.Direction)--
	if *c == (Count{}) {
		delete(r.pods, g.Facts.Pod)
	}
}

// Cut ends the connection for reason, unless it was cut before.
func (g *Guard) Cut(reason error) {
	if !g.cut.Swap(true) {
		g.Owner.Cut(reason)
	}
}

// Recheck asks verdict about every connection of one direction and cuts those
// that it returns an error for. It returns how many it cut.
//
// To miss nothing, the world that verdict sees must be in place before Recheck
// is called, and a new connection must be added before it is judged: either
// Recheck then finds it, or it was judged by that world already. No lock is
// held while verdict or cut runs.
func (r *Registry) Recheck(d Direction, verdict func(Facts) error) (cut int) {
	for _, g := range r.guards(func(g *Guard) bool { return g.Facts.Direction == d }) {
		if err := verdict(g.Facts); err != nil {
			g.Cut(err)
			cut++
		}
	}
	return cut
}

// Cut ends for reason all connections that which says. It runs with a lock held
// and must not call the Registry.
func (r *Registry) Cut(which func(*Guard) bool, reason error) {
	for _, g := range r.guards(which) {
		g.Cut(reason)
	}
}

// Each calls f for every connection, oldest first. No lock is held: a connection
// may have ended meanwhile.
func (r *Registry) Each(f func(*Guard)) {
	for _, g := range r.guards(func(*Guard) bool { return true }) {
		f(g)
	}
}

// guards copies the guards that keep says, oldest first.
func (r *Registry) guards(keep func(*Guard) bool) []*Guard {
	r.mu.Lock()
	out := make([]*Guard, 0, len(r.all))
	for g := range r.all {
		if keep(g) {
			out = append(out, g)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(out, func(a, b *Guard) int { return cmp.Compare(a.id, b.id) })
	return out
}

// Snapshot lists the connections by pod, oldest first.
func (r *Registry) Snapshot() map[string][]Facts {
	out := make(map[string][]Facts)
	r.Each(func(g *Guard) { out[g.Facts.Pod] = append(out[g.Facts.Pod], g.Facts) })
	return out
}

// Pod counts the connections of a pod.
func (r *Registry) Pod(uid string) Count {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.pods[uid]; c != nil {
		return *c
	}
	return Count{}
}

// Len counts all connections.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}
