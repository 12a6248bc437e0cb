package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/xds/client"
	"github.com/warren-mesh/warren/xds/workload"
)

// begun is a connection to a service that may be carried elsewhere.
func begun(t *testing.T, a *abroad) (*connection, route.Decision) {
	t.Helper()
	c, d, _, err := a.pod.decideOutbound(t.Context(), netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.9.0.1:80"))
	if err != nil || c.search == nil {
		t.Fatalf("%+v, %v", d, err)
	}
	return c, d
}

// An endpoint may answer in the moment in which a timer asks whether there is another one:
// the search is over then, or goes on, and neither waits for the timer.
func TestLateBesideAnAnswer(t *testing.T) {
	t.Run("after it was accepted", func(t *testing.T) {
		a := newAbroad(t)
		c, d := begun(t, a)
		late := c.late(d)
		c.taken(d)
		if err := late(); err != nil {
			t.Errorf("there is another one: %v, and only one endpoint", err)
		}
	})
	t.Run("while it goes on", func(t *testing.T) { // for the race detector
		a := newAbroad(t)
		c, d := begun(t, a)
		c.search.more = []netip.AddrPort{netip.MustParseAddrPort("10.9.0.1:80")}
		late := c.late(d)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 20 {
					if late() == nil {
						t.Error("there is none, though there is another address")
					}
				}
			})
		}
		for range 3 {
			n, next, _ := c.elsewhere(d, errUnanswered)
			if n == nil {
				break
			}
			c, d = n, next
		}
		c.taken(d)
		wg.Wait()
		if c.search == nil || len(c.search.failed) == 0 || !errors.Is(c.search.failed[0].err, errUnanswered) {
			t.Errorf("%+v", c.search)
		}
	})
}

// A silent endpoint has its time while handshakes of others wait for their turn: else who
// keeps the gate busy would have everybody wait. What the pod itself has begun counts.
func TestPatienceWhileHandshakesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := hbone.NewGate(1)
		ctx, cancel := context.WithCancel(t.Context())
		var ended sync.WaitGroup
		handshake := func(owner string) { // nobody reads what it says first
			near, far := net.Pipe()
			ended.Go(func() {
				_, _ = hbone.Over(ctx, near, &tls.Config{ServerName: "x"}, hbone.Config{Gate: gate, Owner: owner}, hbone.Request{}, func() {})
				_, _ = near.Close(), far.Close()
			})
			synctest.Wait()
		}
		w := &patience{
			c: &connection{p: &pod{s: &Server{gate: gate}, uid: "ours"}}, began: time.Now().Add(-answerPatience),
			connecting: func() (time.Time, bool) { return time.Time{}, false },
		}
		handshake("another") // has the place
		handshake("stranger")
		if gate.Waiting("stranger") != 1 {
			t.Fatal("nobody waits for a turn")
		}
		if err := w.over(); !errors.Is(err, errSilent) {
			t.Errorf("while others' wait: %v", err)
		}
		handshake("ours")
		if err := w.over(); err != nil {
			t.Errorf("while ours waits: %v", err)
		}
		cancel()
		ended.Wait()
	})
}

// Who has to ask the control plane whether there would be another endpoint does not have the
// one that has just answered wait for that.
func TestAnotherDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbroad(t)
		c, d := begun(t, a)
		var err error
		if a.server.xds, err = client.New(client.Config{Address: "unix:///nowhere", OnDemand: true, Node: client.Node{NodeName: "one"}}, a.server.store); err != nil {
			t.Fatal(err)
		}
		a.server.cfg.OnDemand = true
		guarded := *a.web
		guarded.Waypoint = &workload.GatewayAddress{Hostname: workload.NamespacedHostname{Namespace: "ns", Hostname: "waypoint"}, HBONEPort: 15008}
		a.server.store.Apply(workload.Batch{Services: []*workload.Service{&guarded}})
		began := time.Now()
		if c.another(*c.search, d) || time.Since(began) != 0 {
			t.Errorf("there is another one, behind a waypoint that nobody knows, or so it seems after %s", time.Since(began))
		}
	})
}
