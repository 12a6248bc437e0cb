package client

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/warren-mesh/warren/xds/workload"
)

// TestGather: what comes together becomes visible together, and each response is answered;
// what comes later makes a view of its own.
func TestGather(t *testing.T) {
	bubble(t, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		f.push(response(AuthorizationType, "p1"), response(AddressType, "a1", pod("w", "1")))
		var views []string
		defer store.OnSwap(func(_, v *workload.View) {
			var list []string
			for _, w := range v.Workloads() {
				list = append(list, w.UID+w.CanonicalRevision)
			}
			views = append(views, strings.Join(list, " "))
		})()
		f.push(response(AddressType, "a2", pod("w", "2"), pod("x", "1")), removal(AddressType, "a3", "x"), response(AddressType, "a4", pod("w", "3"), pod("y", "1")))
		wantAnswered(t, f, "p1", "a1", "a2", "a3", "a4")
		f.push(removal(AddressType, "a5", "y"))
		wantAnswered(t, f, "p1", "a1", "a2", "a3", "a4", "a5")
		if got := strings.Join(views, ", "); got != "w3 y1, w3" {
			t.Errorf("views of %s", got)
		}
	})
}

// TestGatheredBeforeAnError: what was taken before a response that ends the stream is in the
// store, as the ledger says to the next one.
func TestGatheredBeforeAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, store := newClient(t, Config{Address: "http://localhost:1"})
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		f := &fakeStream{ctx: ctx, in: make(chan *discovery.DeltaDiscoveryResponse)}
		done := make(chan error, 1)
		go func() { done <- newSession(c, f, cancel).run(ctx) }()
		f.push(response(AuthorizationType, "p1"), response(AddressType, "a1", pod("w", "1")))
		f.in <- response(AddressType, "a2", pod("w", "2"))
		f.in <- response(AddressType, strings.Repeat("n", maxEcho+1))
		select {
		case err := <-done:
			if err == nil || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "nonce") {
				t.Errorf("the stream ended with %v", err)
			}
		case <-time.After(patience):
			t.Fatal("the stream goes on")
		}
		told := c.ledgers[addresses].initial(initialBudget)["w"]
		if got := store.View().WorkloadByUID("w").CanonicalRevision; told != "2" || got != told {
			t.Errorf("the control plane will be told of version %s, the store has %s", told, got)
		}
		wantAnswered(t, f, "p1", "a1", "a2")
	})
}
