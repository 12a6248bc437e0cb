package track_test

import (
	"errors"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/proxy/track"
)

func facts(pod string, d track.Direction, src string) track.Facts {
	return track.Facts{Pod: pod, Direction: d, Src: netip.MustParseAddrPort(src), Protocol: "TCP"}
}

func add(t *testing.T, r *track.Registry, f track.Facts, cut func(error)) *track.Guard {
	t.Helper()
	g := new(track.Guard)
	if err := r.Add(g, f, owner(cut)); err != nil {
		t.Fatal(err)
	}
	return g
}

// owner is a func as a track.Owner.
type owner func(error)

func (o owner) Cut(reason error) { o(reason) }

func TestRecheckCutsTheDenied(t *testing.T) {
	r := track.New(10, 10)
	denied := errors.New("no longer allowed")
	var cut []string
	for _, src := range []string{"10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"} {
		add(t, r, facts("p", track.Inbound, src), func(err error) { cut = append(cut, src+" "+err.Error()) })
	}
	add(t, r, facts("p", track.Outbound, "10.0.0.2:1"), func(error) { t.Error("an outbound connection was cut") })
	verdict := func(f track.Facts) error {
		if f.Src.Addr() == netip.MustParseAddr("10.0.0.2") {
			return denied
		}
		return nil
	}
	for range 2 { // the second time it is cut already
		if n := r.Recheck(track.Inbound, verdict); n != 1 {
			t.Errorf("Recheck cut %d, want 1", n)
		}
	}
	if diff := cmp.Diff([]string{"10.0.0.2:1 no longer allowed"}, cut); diff != "" {
		t.Error(diff)
	}
}

// cut and verdict may use the registry: nothing is held while they run.
func TestNoLockIsHeld(t *testing.T) {
	r := track.New(10, 10)
	var g *track.Guard
	g = add(t, r, facts("p", track.Inbound, "10.0.0.1:1"), func(error) { g.Release() })
	r.Recheck(track.Inbound, func(track.Facts) error {
		if r.Len() != 1 {
			t.Error("the connection is not there")
		}
		return errors.New("cut")
	})
	if r.Len() != 0 || (r.Pod("p") != track.Count{}) {
		t.Errorf("%d connections, pod %v; want none", r.Len(), r.Pod("p"))
	}
	g.Release() // once more
}

func TestBounds(t *testing.T) {
	r := track.New(3, 2)
	a := add(t, r, facts("a", track.Inbound, "10.0.0.1:1"), nil)
	add(t, r, facts("a", track.Outbound, "10.0.0.1:2"), nil)
	if err := r.Add(new(track.Guard), facts("a", track.Inbound, "10.0.0.1:3"), nil); !errors.Is(err, track.ErrFull) {
		t.Errorf("third of a pod: %v, want %v", err, track.ErrFull)
	}
	add(t, r, facts("b", track.Inbound, "10.0.0.1:4"), nil)
	if err := r.Add(new(track.Guard), facts("c", track.Inbound, "10.0.0.1:5"), nil); !errors.Is(err, track.ErrFull) {
		t.Errorf("fourth of the node: %v, want %v", err, track.ErrFull)
	}
	if got, want := r.Pod("a"), (track.Count{Inbound: 1, Outbound: 1}); got != want {
		t.Errorf("pod a: %v, want %v", got, want)
	}
	if got := r.Pod("c"); got != (track.Count{}) {
		t.Errorf("pod c: %v, want none", got)
	}
	a.Release()
	add(t, r, facts("a", track.Inbound, "10.0.0.1:6"), nil)
}

func TestSnapshotIsInOrder(t *testing.T) {
	r := track.New(10, 10)
	for _, src := range []string{"10.0.0.3:1", "10.0.0.1:1", "10.0.0.2:1"} {
		add(t, r, facts("p", track.Inbound, src), nil)
	}
	var got []string
	for _, f := range r.Snapshot()["p"] {
		got = append(got, f.Src.String())
	}
	if diff := cmp.Diff([]string{"10.0.0.3:1", "10.0.0.1:1", "10.0.0.2:1"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestCut(t *testing.T) {
	r := track.New(10, 10)
	cut := map[string]int{}
	for _, pod := range []string{"a", "b", "a"} {
		add(t, r, facts(pod, track.Outbound, "10.0.0.1:1"), func(error) { cut[pod]++ })
	}
	a := func(g *track.Guard) bool { return g.Facts.Pod == "a" }
	r.Cut(a, errors.New("gone"))
	r.Cut(a, errors.New("gone"))
	if diff := cmp.Diff(map[string]int{"a": 2}, cut); diff != "" {
		t.Error(diff)
	}
}

// A connection added while a policy changes is judged by the new policy, by
// Recheck or by its own check. This is the order that both sides must keep.
func TestNoUpdateIsMissed(t *testing.T) {
	for range 200 {
		r := track.New(10, 10)
		var mu sync.Mutex
		deny := false
		denied := func() bool { mu.Lock(); defer mu.Unlock(); return deny }
		var wg sync.WaitGroup
		cut := make(chan struct{})
		wg.Go(func() { // the update
			mu.Lock()
			deny = true
			mu.Unlock()
			r.Recheck(track.Inbound, func(track.Facts) error {
				if denied() {
					return errors.New("policy change")
				}
				return nil
			})
		})
		refused := false
		wg.Go(func() { // the connection
			g := new(track.Guard)
			if err := r.Add(g, facts("p", track.Inbound, "10.0.0.1:1"), owner(func(error) { close(cut) })); err != nil {
				t.Error(err)
				return
			}
			if denied() {
				refused = true
				g.Release()
			}
		})
		wg.Wait()
		select {
		case <-cut:
		default:
			if !refused {
				t.Fatal("the connection was neither refused nor cut")
			}
		}
	}
}
