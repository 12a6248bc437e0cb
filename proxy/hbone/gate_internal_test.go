package hbone

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestGateTurns: places go round the owners, and of one owner's handshakes those
// that have begun go first.
func TestGateTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		ctx := t.Context()
		if err := g.take(ctx, laneKey{}, false, time.Hour); err != nil {
			t.Fatal(err)
		}
		var got []string
		wait := func(owner string, begun bool, name string) {
			go func() {
				if err := g.take(ctx, laneKey{owner: owner}, begun, time.Hour); err != nil {
					t.Error(err)
				}
				got = append(got, name) // one place: one at a time
				g.give()
			}()
			synctest.Wait()
		}
		for i := range 3 {
			wait("storm", false, fmt.Sprint("storm", i))
		}
		wait("storm", true, "storm-begun")
		wait("calm", false, "calm0")
		wait("calm", false, "calm1")
		go func() {
			_ = g.take(ctx, laneKey{owner: "calm", client: true}, true, time.Second)
		}()
		synctest.Wait()
		if g.waiting != 7 || g.Waiting("calm") != 1 || g.Waiting("storm") != 0 {
			t.Errorf("%d wait, want 7; %d that calm has begun, want 1; %d of the storm's, want 0", g.waiting, g.Waiting("calm"), g.Waiting("storm"))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		g.give()
		synctest.Wait()
		want := []string{"storm-begun", "calm0", "storm0", "calm1", "storm1", "storm2"}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		mustBeFree(t, g, 1)
	})
}

// mustBeFree: nothing is left of those who waited.
func mustBeFree(t *testing.T, g *Gate, places int) {
	t.Helper()
	if g.free != places || g.waiting != 0 || len(g.lanes) != 0 || g.round.Len() != 0 || len(g.peers) != 0 {
		t.Errorf("free %d, waiting %d, %d lanes, round %d, %d peers", g.free, g.waiting, len(g.lanes), g.round.Len(), len(g.peers))
	}
}

// TestGatePatience: waiting ends with an error that says why, and leaves nothing.
func TestGatePatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(0)
		if err := g.take(t.Context(), laneKey{owner: "a"}, false, 0); err != nil {
			t.Fatal(err)
		}
		err := g.take(t.Context(), laneKey{owner: "b"}, true, g.patience)
		if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "no turn within 15s") {
			t.Errorf("%v", err)
		}
		gone, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("nobody wants it")
		time.AfterFunc(time.Second, func() { cancel(cause) })
		if err := g.take(gone, laneKey{owner: "a"}, false, g.patience); !errors.Is(err, cause) {
			t.Errorf("%v", err)
		}
		g.give()
		mustBeFree(t, g, 1)
	})
}

// TestGatePeers: the handshakes with one peer are bounded, those with another go on.
func TestGatePeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		g.perPeer = 2
		one := peerKey{addr: netip.MustParseAddr("10.0.0.1")}
		enter := func(k peerKey) error { return g.enter(t.Context(), k, g.patience) }
		for range 2 {
			if err := enter(one); err != nil {
				t.Fatal(err)
			}
		}
		for _, k := range []peerKey{{addr: one.addr, client: true}, {addr: netip.MustParseAddr("10.0.0.2")}} {
			if err := enter(k); err != nil {
				t.Error(err)
			}
			g.leave(k)
		}
		if err := enter(one); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "2 with 10.0.0.1 are under way") {
			t.Errorf("%v", err)
		}
		third := make(chan error, 1)
		go func() { third <- enter(one) }()
		synctest.Wait()
		g.leave(one)
		if err := <-third; err != nil {
			t.Error(err)
		}
		g.leave(one)
		g.leave(one)
		mustBeFree(t, g, 1)
	})
}

// TestWholeRecords: a turn is worth asking for when a record is all there.
func TestWholeRecords(t *testing.T) {
	record := func(n int) []byte { return append([]byte{22, 3, 3, byte(n >> 8), byte(n)}, make([]byte, n)...) }
	for _, c := range []struct {
		name string
		in   []byte
		want int
	}{
		{"nothing", nil, 0},
		{"part of a header", record(7)[:4], 0},
		{"part of a record", record(7)[:11], 0},
		{"a record", record(7), 12},
		{"an empty record", record(0), 5},
		{"two and a part", slices.Concat(record(7), record(300), record(9)[:8]), 12 + 305},
		{"the largest", record(maxRecord), recordHeader + maxRecord},
		{"too large to be one", record(maxRecord + 1)[:9], 9},
		{"another protocol", []byte("GET / HTTP/1.1"), 14},
	} {
		if got := wholeRecords(c.in); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
