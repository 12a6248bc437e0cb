package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/xds/workload"
)

// fakeStream is a stream in memory: Recv takes from in, Send never blocks.
type fakeStream struct {
	ctx context.Context
	in  chan *discovery.DeltaDiscoveryResponse

	mu   sync.Mutex
	sent []*discovery.DeltaDiscoveryRequest
}

func (f *fakeStream) Send(r *discovery.DeltaDiscoveryRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent = append(f.sent, r)
	return nil
}

func (f *fakeStream) Recv() (*delivery, error) {
	select {
	case r := <-f.in:
		return decoded(r), nil
	case <-f.ctx.Done():
		return nil, f.ctx.Err()
	}
}

// answered are the nonces answered so far, in order.
func (f *fakeStream) answered() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for _, r := range f.sent {
		if n := r.GetResponseNonce(); n != "" {
			list = append(list, n)
		}
	}
	return list
}

// bubble runs a session in a bubble of fake time.
func bubble(t *testing.T, test func(t *testing.T, f *fakeStream, c *Client, store *workload.Store)) {
	bubbleWith(t, Config{Address: "http://localhost:1"}, test)
}

func bubbleWith(t *testing.T, cfg Config, test func(t *testing.T, f *fakeStream, c *Client, store *workload.Store)) {
	synctest.Test(t, func(t *testing.T) {
		c, store := newClient(t, cfg)
		ctx, cancel := context.WithCancelCause(t.Context())
		f := &fakeStream{ctx: ctx, in: make(chan *discovery.DeltaDiscoveryResponse)}
		done := make(chan error, 1)
		go func() { done <- newSession(c, f, cancel).run(ctx) }()
		test(t, f, c, store)
		end := errors.New("the test is over")
		cancel(end)
		if err := <-done; !errors.Is(err, end) {
			t.Errorf("session: %v", err)
		}
	})
}

// push sends responses and waits until the session is at rest.
func (f *fakeStream) push(responses ...*discovery.DeltaDiscoveryResponse) {
	for _, r := range responses {
		f.in <- r
	}
	time.Sleep(2 * gatherFor) // what comes together becomes visible together
	synctest.Wait()
}

func wantAnswered(t *testing.T, f *fakeStream, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, f.answered()); d != "" {
		t.Error("answered (-want +got):", d)
	}
}

// Istio's control plane sends workloads first. No view may have one of them
// without the policies that it names.
func TestPoliciesComeWithWorkloads(t *testing.T) {
	bubble(t, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		views := 0
		defer store.OnSwap(func(_, v *workload.View) {
			views++
			for _, w := range v.Workloads() {
				if missing := v.PoliciesFor(w).Missing; len(missing) > 0 {
					t.Errorf("view %d: %s is without %v", views, w.UID, missing)
				}
			}
		})()
		f.push(response(AddressType, "a1", pod("w1", "1", "ns/p1"), pod("plain", "1")))
		wantAnswered(t, f)
		f.push(response(AuthorizationType, "p1", policy("p1", "1")))
		wantAnswered(t, f, "a1", "p1")
		if views != 1 || !isSynced(c) {
			t.Errorf("%d views, synced %v", views, isSynced(c))
		}
		// Later as well.
		f.push(response(AddressType, "a2", pod("w1", "2", "ns/p1", "ns/p2")))
		if w := store.View().WorkloadByUID("w1"); w.CanonicalRevision != "1" {
			t.Error("w1 names a policy that is not there")
		}
		f.push(response(AuthorizationType, "p2", policy("p2", "1")))
		if w := store.View().WorkloadByUID("w1"); w.CanonicalRevision != "2" {
			t.Error("w1 waits for nothing")
		}
		// What needs nothing new does not wait; nor do removals.
		f.push(response(AddressType, "a3", pod("w1", "3", "ns/p2")))
		f.push(removal(AuthorizationType, "p3", "ns/p1"))
		f.push(removal(AddressType, "a4", "plain"))
		wantAnswered(t, f, "a1", "p1", "a2", "p2", "a3", "p3", "a4")
	})
}

// Waiting ends.
func TestPoliciesDoNotCome(t *testing.T) {
	bubble(t, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		start := time.Now()
		applied := func() time.Duration {
			t.Helper()
			before := store.View()
			select {
			case <-before.Superseded():
			case <-time.After(time.Hour):
				t.Fatal("never applied")
			}
			d := time.Since(start)
			synctest.Wait()
			start = time.Now()
			return d
		}
		f.push(response(AddressType, "a1", pod("w1", "1")))
		if d := applied(); d != c.times.first || isSynced(c) {
			t.Errorf("the first workloads are there after %v, synced %v", d, isSynced(c))
		}
		f.push(response(AuthorizationType, "p1", badPolicy("bad")))
		f.push(response(AddressType, "a2", pod("w1", "2", "ns/late")))
		if d := applied(); d < c.times.policy || d > c.times.policy+4*gatherFor {
			t.Errorf("a workload without its policy is there after %v", d)
		}
		// Known to be missing, or refused: nobody waits again.
		f.push(response(AddressType, "a3", pod("w1", "3", "ns/late")))
		f.push(response(AddressType, "a4", pod("w1", "4", "ns/bad")))
		wantAnswered(t, f, "a1", "p1", "a2", "a3", "a4")
		// A change behind one that waits does not overtake it.
		f.push(response(AddressType, "a5", pod("w1", "5", "ns/later")), response(AddressType, "a6", pod("w1", "6")))
		wantAnswered(t, f, "a1", "p1", "a2", "a3", "a4", "a5", "a6")
		if w := store.View().WorkloadByUID("w1"); w.CanonicalRevision != "6" {
			t.Errorf("w1 is at %s", w.CanonicalRevision)
		}
	})
}

// A policy is waited for once: one that never comes must not hold up each pod that is to
// have it, nor what comes with it.
func TestPoliciesThatNeverCome(t *testing.T) {
	log := &lines{}
	bubbleWith(t, Config{Address: "http://localhost:1", Log: slog.New(slog.NewTextHandler(log, nil))}, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		f.push(response(AuthorizationType, "p1"), response(AddressType, "a1", pod("w0", "1")))
		wait := func(uid string, names ...string) time.Duration {
			t.Helper()
			start := time.Now()
			f.push(response(AddressType, uid, pod(uid, "1", names...)))
			for store.View().WorkloadByUID(uid) == nil {
				select {
				case <-store.View().Superseded():
				case <-time.After(time.Hour):
					t.Fatal("never applied")
				}
			}
			return time.Since(start)
		}
		for _, step := range []struct {
			uid   string
			names []string
			waits bool
		}{
			{"w1", []string{"ns/never"}, true},
			{"w2", []string{"ns/never"}, false},
			{"w3", []string{"ns/never", "ns/late"}, true},
			{"w4", []string{"ns/late", "ns/never"}, false},
		} {
			if d := wait(step.uid, step.names...); (d >= c.times.policy) != step.waits || d > c.times.policy+time.Second/2 {
				t.Errorf("%s is there after %v, want that it waits: %v", step.uid, d, step.waits)
			}
		}
		// What has come, and gone again, is waited for anew.
		f.push(response(AuthorizationType, "p2", policy("late", "1")), removal(AuthorizationType, "p3", "ns/late"))
		synctest.Wait()
		time.Sleep(2 * c.times.leave)
		synctest.Wait()
		if d := wait("w5", "ns/late"); d < c.times.policy {
			t.Errorf("w5 is there after %v", d)
		}
		if n := log.count("have not come in time"); n != 3 || log.count("ns/never") == 0 {
			t.Errorf("%d lines, want one for each wait, which names what was waited for", n)
		}
	})
}

// Of workloads of other nodes nobody asks this one what guards them.
func TestPoliciesOfOtherNodes(t *testing.T) {
	client, _ := newClient(t, Config{Address: "http://localhost:1"})
	client.store = workload.NewNodeStore("here")
	s := newSession(client, nil, nil)
	s.seen[policies] = true
	for node, want := range map[string]time.Duration{"here": client.times.policy, "there": 0, "": 0} {
		clear(s.awaited)
		c := &change{batch: workload.Batch{Workloads: []*workload.Workload{{UID: "w", Node: node, Policies: []string{"ns/p"}}}}}
		if got := s.lacking(c); got != want {
			t.Errorf("on node %q: waits for %v, want %v", node, got, want)
		}
	}
	clear(s.awaited)
	w := &workload.Workload{UID: "w", Node: "here", Policies: []string{"ns/" + strings.Repeat("p", maxName)}}
	if got := s.lacking(&change{batch: workload.Batch{Workloads: []*workload.Workload{w}}}); got != 0 || len(s.awaited) > 0 {
		t.Errorf("waits for %v for a name that no policy can have, and remembers %d", got, len(s.awaited))
	}
	for i := range 2 * maxAwaited {
		w.Policies = []string{fmt.Sprint("ns/", i)}
		if got := s.lacking(&change{batch: workload.Batch{Workloads: []*workload.Workload{w}}}); got != client.times.policy {
			t.Fatalf("%d: waits for %v", i, got)
		}
	}
	if n := len(s.awaited); n != maxAwaited {
		t.Errorf("%d names are remembered, want %d", n, maxAwaited)
	}
}

// What waited when the stream broke was never taken, and is asked for again.
func TestHeldAtTheEnd(t *testing.T) {
	var client *Client
	bubble(t, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		client = c
		f.push(response(AddressType, "a1", pod("w1", "1")))
		wantAnswered(t, f)
	})
	if got := client.ledgers[addresses].initial(initialBudget); len(got) > 0 {
		t.Errorf("the next stream is told %v", got)
	}
}

// Attempts become rarer, up to a limit, and none follows at once.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newClient(t, Config{Address: "http://localhost:1"})
		var at []time.Time
		c.dial = func(context.Context, string, string) (net.Conn, error) {
			at = append(at, time.Now())
			return nil, errors.New("not today")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := c.Run(ctx); err != nil {
			t.Fatal(err)
		}
		d := backoffMin
		for i := 1; i < len(at); i++ {
			if gap := at[i].Sub(at[i-1]); gap < d/2 || gap > d {
				t.Errorf("attempt %d after %v, want %v to %v", i, gap, d/2, d)
			}
			d = min(2*d, backoffMax)
		}
		if n := len(at); n < 48 || n > 95 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		if st := c.Status(); st.State != Idle || st.LastError == "" {
			t.Errorf("status %+v", st)
		}
	})
}

// Only a connection that has been of use for a while starts the pace anew.
func TestPaceAfterSuccess(t *testing.T) {
	c, _ := newClient(t, Config{Address: "http://localhost:1"})
	var p pace
	for _, lasted := range []time.Duration{-1, 0, time.Second, stable - 1, -1, 0, 0, 0, 0, 0, 0, 0} {
		c.ended(t.Context(), &p, lasted, errors.New("x"))
	}
	if got := c.ended(t.Context(), &p, 0, errors.New("x")); got < backoffMax/2 || got > backoffMax {
		t.Errorf("after many short connections it waits for %v", got)
	}
	if got := c.ended(t.Context(), &p, stable, errors.New("x")); got > backoffMin {
		t.Errorf("after a long one it waits for %v", got)
	}
}
