package client

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/xds/server"
	"github.com/warren-mesh/warren/xds/workload"
)

func onDemandConfig(address string) Config {
	return Config{Address: address, OnDemand: true, Node: Node{NodeName: "one"}}
}

// asked are the changes of subscription since the last call, as text.
func (f *fakeStream) asked() []string {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for _, r := range f.sent {
		if r.GetTypeUrl() != AddressType || r.GetResponseNonce() != "" {
			continue
		}
		var words []string
		for _, n := range r.GetResourceNamesSubscribe() {
			words = append(words, "+"+n)
		}
		for _, n := range r.GetResourceNamesUnsubscribe() {
			words = append(words, "-"+n)
		}
		list = append(list, strings.Join(words, " "))
	}
	f.sent = nil
	return list
}

func wantAsked(t *testing.T, f *fakeStream, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, f.asked()); d != "" {
		t.Error("asked (-want +got):", d)
	}
}

// askers runs n Asks of a name, and waits until all wait.
func askers(t *testing.T, c *Client, n int, name string) <-chan error {
	done := make(chan error, n)
	for range n {
		go func() { done <- c.Ask(t.Context(), name) }()
	}
	synctest.Wait()
	return done
}

// wantEnded takes the results of n Asks, which must be there.
func wantEnded(t *testing.T, done <-chan error, n int, want error) {
	t.Helper()
	synctest.Wait()
	for range n {
		select {
		case err := <-done:
			if !errors.Is(err, want) {
				t.Errorf("asked: %v, want %v", err, want)
			}
		default:
			t.Fatal("it still waits")
		}
	}
}

func wantWaiting(t *testing.T, done <-chan error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-done:
		t.Fatalf("it does not wait: %v", err)
	default:
	}
}

func TestAsk(t *testing.T) {
	bubbleWith(t, onDemandConfig("http://localhost:1"), func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		wantAsked(t, f, "+* -*")
		f.push(response(AuthorizationType, "p1"), response(AddressType, "a1"))
		select {
		case <-c.Synced():
		default:
			t.Error("not synced, though it was told all that it asked for")
		}

		// Many want to know, one asks.
		done := askers(t, c, 50, "/10.0.0.1")
		wantAsked(t, f, "+/10.0.0.1")
		wantWaiting(t, done)
		found := pod("w", "1")
		found.Aliases = []string{"/10.0.0.1"}
		f.push(response(AddressType, "a2", found))
		wantEnded(t, done, 50, nil)
		if store.View().WorkloadByAddr(workload.NetworkAddr{Addr: netip.AddrFrom4([4]byte{10, 0, 0, 1})}) == nil {
			t.Error("answered, but not in the store")
		}
		wantAsked(t, f)

		// What has come without having been asked for by this name is asked for as if it
		// had been: a control plane that thinks it said everything would not answer.
		done = askers(t, c, 1, "w")
		wantAsked(t, f, "+"+nothing+" -w", "+w")
		f.push(response(AddressType, "a2b", found))
		wantEnded(t, done, 1, nil)
		wantAsked(t, f)

		// Nothing there: that holds for a moment, then it is a new question, for which
		// the old one is taken back.
		done = askers(t, c, 1, "/10.0.0.2")
		f.push(removal(AddressType, "a3", "/10.0.0.2"))
		wantEnded(t, done, 1, nil)
		wantAsked(t, f, "+/10.0.0.2")
		wantEnded(t, askers(t, c, 1, "/10.0.0.2"), 1, nil)
		wantAsked(t, f)
		time.Sleep(answerHolds)
		done = askers(t, c, 1, "/10.0.0.2")
		wantAsked(t, f, "+"+nothing+" -/10.0.0.2", "+/10.0.0.2")
		f.push(removal(AddressType, "a4", "/10.0.0.2"))
		wantEnded(t, done, 1, nil)

		// What cannot be used is not nothing.
		done = askers(t, c, 1, "bad")
		f.push(response(AddressType, "a5", badPod("bad", "1")))
		wantEnded(t, done, 1, errRefused)
		wantAsked(t, f, "+bad")
		wantEnded(t, askers(t, c, 1, "bad"), 1, errRefused) // which holds for a moment
		wantAsked(t, f)
		time.Sleep(answerHolds)
		done = askers(t, c, 1, "bad")
		wantAsked(t, f, "+"+nothing+" -bad", "+bad")
		f.push(response(AddressType, "a5b", badPod("bad", "1")))
		wantEnded(t, done, 1, errRefused)
		f.push(response(AddressType, "a5c", pod("bad", "2"))) // mended
		wantEnded(t, askers(t, c, 1, "bad"), 1, nil)
		wantAsked(t, f)

		// Who does not want to wait any longer leaves the question to the others.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		patient := askers(t, c, 1, "ns/s")
		if err := c.Ask(ctx, "ns/s"); !errors.Is(err, errNoAnswer) || !strings.Contains(err.Error(), "ns/s") {
			t.Errorf("nobody answers: %v", err)
		}
		wantWaiting(t, patient)
		f.push(response(AddressType, "a6", service("ns/s", "1")))
		wantEnded(t, patient, 1, nil)
	})
}

// TestAskWaitsForPolicies: an answer counts once it can be used.
func TestAskWaitsForPolicies(t *testing.T) {
	bubbleWith(t, onDemandConfig("http://localhost:1"), func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		f.push(response(AuthorizationType, "p1"), response(AddressType, "a1"))
		done := askers(t, c, 1, "w")
		f.push(response(AddressType, "a2", pod("w", "1", "ns/p")))
		wantWaiting(t, done)
		f.push(response(AuthorizationType, "p2", policy("p", "1")))
		wantEnded(t, done, 1, nil)
		if v := store.View(); len(v.PoliciesFor(v.WorkloadByUID("w")).Missing) > 0 {
			t.Error("answered without the policy")
		}
	})
}

// TestAsksOfANewStream: what has no answer is asked again, with what we have.
func TestAsksOfANewStream(t *testing.T) {
	s := newStub(t)
	c, _ := newClient(t, onDemandConfig(s.Address))
	run(t, c)
	x, address, policies := s.subscribed()
	if n := len(policies.GetResourceNamesSubscribe()); n > 0 {
		t.Errorf("policies are asked for by %d names", n)
	}
	if len(address.GetInitialResourceVersions()) > 0 {
		t.Errorf("first request %v", address)
	}
	x.push(response(AuthorizationType, "p1"))
	x.push(response(AddressType, "a1", pod("w", "7")))
	results := make(chan error, 2)
	for _, name := range []string{"/10.0.0.8", "/10.0.0.9"} {
		go func() { results <- c.Ask(t.Context(), name) }()
		if r := x.request(); !slices.Equal(r.GetResourceNamesSubscribe(), []string{name}) {
			t.Fatalf("asked %v", r)
		}
	}
	x.push(removal(AddressType, "a2", "/10.0.0.9"))
	if err := <-results; err != nil {
		t.Fatal(err)
	}
	x.end <- errors.New("gone")
	x, address, _ = s.subscribed()
	if d := cmp.Diff([]string{"*", "/10.0.0.8"}, address.GetResourceNamesSubscribe()); d != "" || !slices.Equal(address.GetResourceNamesUnsubscribe(), []string{"*"}) {
		t.Errorf("after a reconnect: %v %s", address, d)
	}
	if d := cmp.Diff(map[string]string{"w": "7"}, address.GetInitialResourceVersions()); d != "" {
		t.Error("versions (-want +got):", d)
	}
	x.push(removal(AddressType, "a3", "/10.0.0.8"))
	if err := <-results; err != nil {
		t.Fatal(err)
	}
}

// What is asked for when a stream ends may be held: as istiod answers, by saying nothing of
// what the client has in the same version. It is asked for again, as a new question.
func TestHeldIsAskedForOnANewStream(t *testing.T) {
	s := newStub(t)
	c, _ := newClient(t, onDemandConfig(s.Address))
	run(t, c)
	x, _, _ := s.subscribed()
	x.push(response(AuthorizationType, "p1"))
	x.push(response(AddressType, "a1", service("ns/s", "7")))
	c.Renew("ns/s")
	_, _ = x.request(), x.request()
	results := make(chan error, 1)
	go func() { results <- c.Ask(t.Context(), "/10.0.0.8") }()
	x.request()
	x.end <- errors.New("gone") // before it has answered
	x, address, _ := s.subscribed()
	subscribed := address.GetResourceNamesSubscribe()
	if slices.Sort(subscribed); !slices.Equal(subscribed, []string{"*", "/10.0.0.8", "ns/s"}) || address.GetInitialResourceVersions()["ns/s"] != "7" {
		t.Fatalf("after a reconnect: %v", address)
	}
	x.push(response(AuthorizationType, "p2"))
	x.push(removal(AddressType, "a2", "/10.0.0.8")) // and nothing of ns/s
	if err := <-results; err != nil {
		t.Fatal(err)
	}
	if r := x.request(); !slices.Equal(r.GetResourceNamesUnsubscribe(), []string{"ns/s"}) {
		t.Errorf("it is not given back: %v", r)
	}
	if r := x.request(); !slices.Equal(r.GetResourceNamesSubscribe(), []string{"ns/s"}) {
		t.Errorf("it is not asked for again: %v", r)
	}
	x.push(response(AddressType, "a3", service("ns/s", "7")))
	if err := c.Ask(t.Context(), "ns/s"); err != nil || c.asks.waiting != 0 {
		t.Errorf("%v, %d wait", err, c.asks.waiting)
	}
	x.push(response(AddressType, "a4")) // nothing is asked for any more
}

// TestAbsentWhileDisconnected: what was outside the mesh stays outside of it while its
// control plane is away.
func TestAbsentWhileDisconnected(t *testing.T) {
	q := newAsks()
	q.restart()
	now := time.Unix(100, 0)
	a, err := q.ask("x", now)
	if a == nil || err != nil {
		t.Fatal(a, err)
	}
	q.due()
	q.answer("x", true, nil, now)
	q.stopped()
	if a, err := q.ask("x", now.Add(time.Hour)); a != nil || err != nil {
		t.Errorf("asks again while nobody answers: %v, %v", a, err)
	}
	q.restart()
	if a, err := q.ask("x", now.Add(time.Hour)); a == nil || err != nil {
		t.Errorf("does not ask again: %v, %v", a, err)
	}
	if leave, enter := q.due(); len(leave) != 0 || !slices.Equal(enter, []string{"x"}) {
		t.Errorf("takes back %v, asks %v: this stream knows nothing of it", leave, enter)
	}
}

// TestRenew: what is used is asked for again now and then, and nobody waits for it.
func TestRenew(t *testing.T) {
	q := newAsks()
	now := time.Unix(100, 0)
	q.renew("ns/s", now)
	if _, enter := q.due(); len(enter) != 0 {
		t.Errorf("asks %v without a stream", enter)
	}
	q.restart()
	for _, step := range []struct {
		after        time.Duration
		leave, enter []string
	}{
		{0, nil, []string{"ns/s"}}, {renewAfter - 1, nil, nil}, {renewAfter, []string{"ns/s"}, []string{"ns/s"}}, {renewAfter + 1, nil, nil},
	} {
		q.renew("ns/s", now.Add(step.after))
		q.renew("ns/s", now.Add(step.after))
		if leave, enter := q.due(); !slices.Equal(leave, step.leave) || !slices.Equal(enter, step.enter) {
			t.Errorf("after %s: takes back %v, asks %v, want %v, %v", step.after, leave, enter, step.leave, step.enter)
		}
		if len(step.enter) > 0 {
			q.answer("ns/s", false, nil, now.Add(step.after))
		}
	}
}

// TestRefresh: what is known but of no use is asked for anew where there is somebody to
// answer; no answer is no error, and nobody waits for a control plane that is away.
func TestRefresh(t *testing.T) {
	bubbleWith(t, onDemandConfig("http://localhost:1"), func(t *testing.T, f *fakeStream, c *Client, _ *workload.Store) {
		f.asked()
		f.push(response(AuthorizationType, "p1"), response(AddressType, "a1", service("ns/s", "1")))
		refresh := func() chan struct{} {
			done := make(chan struct{})
			go func() { defer close(done); c.Refresh(t.Context(), "ns/s") }()
			synctest.Wait()
			return done
		}
		ended := func(done chan struct{}) bool {
			select {
			case <-done:
				return true
			default:
				return false
			}
		}
		done := refresh()
		wantAsked(t, f, "+"+nothing+" -ns/s", "+ns/s")
		if ended(done) {
			t.Error("nobody waited for the answer")
		}
		f.push(response(AddressType, "a2", service("ns/s", "2")))
		if synctest.Wait(); !ended(done) {
			t.Error("it still waits")
		}
		// What cannot be used takes nothing from the others.
		f.push(response(AddressType, "a3", badPod("bad", "1")))
		bad := askers(t, c, 1, "bad")
		f.push(response(AddressType, "a4", badPod("bad", "1")))
		wantEnded(t, bad, 1, errRefused)
		wantAsked(t, f, "+bad")
		time.Sleep(answerHolds - time.Second)
		both := make(chan struct{})
		go func() { defer close(both); c.Refresh(t.Context(), "bad", "ns/s2") }()
		synctest.Wait()
		wantAsked(t, f, "+ns/s2")
		if ended(both) {
			t.Error("nobody waited for the other one")
		}
		f.push(response(AddressType, "a5", service("ns/s2", "1")))
		if synctest.Wait(); !ended(both) {
			t.Error("it still waits")
		}
		time.Sleep(answerHolds)
		c.asks.stopped()
		if done := refresh(); !ended(done) {
			t.Error("it waits for a control plane that is away")
		}
		wantAsked(t, f)
	})
}

func TestAsksAreBounded(t *testing.T) {
	q := newAsks()
	q.restart()
	now := time.Unix(100, 0)
	for i := range maxWaiting {
		if _, err := q.ask(fmt.Sprint(i), now); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := q.ask("more", now); !errors.Is(err, errTooManyAsks) {
		t.Errorf("%d wait: %v", maxWaiting+1, err)
	}
	if a, err := q.ask("0", now); a == nil || err != nil {
		t.Errorf("who asks for the same: %v, %v", a, err)
	}
	q.due()
	for i := range 2 * maxAsks {
		name := fmt.Sprint(i)
		if i >= maxWaiting {
			if _, err := q.ask(name, now); err != nil {
				t.Fatal(err)
			}
			q.due()
		}
		q.answer(name, true, nil, now)
	}
	if len(q.names) != maxAsks || q.recent.Len() != maxAsks || q.waiting != 0 {
		t.Errorf("%d names, %d in order, %d waiting, want %d at most", len(q.names), q.recent.Len(), q.waiting, maxAsks)
	}
	if _, err := q.ask("newest", now); err != nil {
		t.Fatal(err)
	}
	if leave, _ := q.due(); !slices.Equal(leave, []string{fmt.Sprint(maxAsks)}) {
		t.Errorf("taken back %v, want what was not wanted for longest", leave)
	}
}

func TestManyAsksGoInSeveralMessages(t *testing.T) {
	bubbleWith(t, onDemandConfig("http://localhost:1"), func(t *testing.T, f *fakeStream, c *Client, _ *workload.Store) {
		f.asked()
		var names []string
		for i := range 2*maxNamesSent + 1 {
			names = append(names, fmt.Sprint("n", i))
		}
		done := make(chan error, 1)
		go func() { done <- c.Ask(t.Context(), names...) }()
		if n := len(f.asked()); n < 3 {
			t.Errorf("%d messages", n)
		}
		f.push(&discovery.DeltaDiscoveryResponse{TypeUrl: AddressType, Nonce: "1", RemovedResources: names})
		wantEnded(t, done, 1, nil)
	})
}

// TestOnDemandAgainstServer: the two ends of Warren's own.
func TestOnDemandAgainstServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "xds.sock")
	s, stop := controlPlane(t, path)
	at := func(uid, node, ip string) *workload.Workload {
		w := guarded(uid, "1")
		w.Node, w.Addresses = node, []netip.Addr{netip.MustParseAddr(ip)}
		return w
	}
	member := at("member", "two", "10.0.0.3")
	member.Services = workload.Memberships{{Service: workload.NamespacedHostname{Namespace: "ns", Hostname: "s.example"}}}
	model := server.Model{
		Workloads: []*workload.Workload{at("here", "one", "10.0.0.1"), at("there", "two", "10.0.0.2"), member},
		Services:  []*workload.Service{{Name: "s", Namespace: "ns", Hostname: "s.example", VIPs: []workload.NetworkAddr{{Addr: netip.MustParseAddr("10.9.0.1")}}}},
	}
	s.SetSnapshot(snapshot(t, model))
	c, store := newClient(t, onDemandConfig("unix://"+path))
	run(t, c)
	select {
	case <-c.Synced():
	case <-time.After(patience):
		t.Fatalf("not synced: %+v", c.Status())
	}
	has := func(want ...string) {
		t.Helper()
		same := func(v *workload.View) bool {
			var got []string
			for _, w := range v.Workloads() {
				got = append(got, w.UID)
			}
			for _, s := range v.Services() {
				got = append(got, s.Hostname)
			}
			return slices.Equal(got, want)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := store.Wait(ctx, same); err != nil {
			t.Fatalf("want %v: %v", want, err)
		}
	}
	ask := func(name string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := c.Ask(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	has("here")
	ask("/10.0.0.77")
	has("here")
	ask("/10.9.0.1")
	has("here", "member", "s.example")
	// What comes under an address that was asked for in vain, and what joins a service.
	late := *member
	late.UID, late.Addresses = "late", []netip.Addr{netip.MustParseAddr("10.0.0.77")}
	model.Workloads = append(slices.Clone(model.Workloads), &late)
	s.SetSnapshot(snapshot(t, model))
	has("here", "late", "member", "s.example")
	stop()
	s, _ = controlPlane(t, path)
	model.Workloads = model.Workloads[:3]
	s.SetSnapshot(snapshot(t, model))
	has("here", "member", "s.example")
	ask("there")
	has("here", "member", "there", "s.example")
}
