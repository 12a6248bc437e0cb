package client

import (
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/warren-mesh/warren/xds/workload"
)

// missing are the policies that a workload names and a view lacks.
func missing(v *workload.View, uid string) []string {
	if w := v.WorkloadByUID(uid); w != nil {
		return v.PoliciesFor(w).Missing
	}
	return nil
}

// Istio's control plane may say that a policy is gone before it says so of the workloads
// that it guarded: lifting a restriction must not close them.
func TestPoliciesLeaveAfterWorkloads(t *testing.T) {
	bubble(t, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		defer store.OnSwap(func(_, v *workload.View) {
			if names := missing(v, "w1"); len(names) > 0 {
				t.Errorf("w1 is without %v", names)
			}
		})()
		f.push(response(AddressType, "a1", pod("w1", "1", "ns/p1", "ns/p2"), pod("w2", "1", "ns/p2")))
		f.push(response(AuthorizationType, "p1", policy("p1", "1"), policy("p2", "1"), policy("nobody's", "1")))
		f.push(removal(AuthorizationType, "p2", "ns/p1", "ns/nobody's"))
		wantAnswered(t, f, "a1", "p1", "p2")
		if v := store.View(); v.Policy("ns/p1") == nil || v.Policy("ns/nobody's") != nil {
			t.Errorf("there are %v", v.Policies())
		}
		f.push(response(AddressType, "a2", pod("w1", "2", "ns/p2")))
		if store.View().Policy("ns/p1") != nil {
			t.Error("nobody names ns/p1, and it stays")
		}
		f.push(removal(AuthorizationType, "p3", "ns/p2"))
		f.push(response(AddressType, "a3", pod("w1", "3")))
		if store.View().Policy("ns/p2") == nil {
			t.Error("ns/p2 is gone, and w2 names it")
		}
		f.push(removal(AddressType, "a4", "w2"))
		if store.View().Policy("ns/p2") != nil || len(c.ledgers[policies].entries) != 0 {
			t.Errorf("nobody names ns/p2, and it stays: %v", c.ledgers[policies].entries)
		}
		wantAnswered(t, f, "a1", "p1", "p2", "a2", "p3", "a3", "a4") // each once
		if n := len(f.sent); n != kinds+7 {
			t.Errorf("%d messages were sent", n)
		}
	})
}

// A removal waits for so long, whatever comes meanwhile.
func TestPoliciesLeaveInTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		there := func(name string) bool { return store.View().Policy(name) != nil }
		f.push(response(AddressType, "a1", pod("w1", "1", "ns/p1", "ns/p2")))
		f.push(response(AuthorizationType, "p1", policy("p1", "1"), policy("p2", "1")))
		f.push(removal(AuthorizationType, "p2", "ns/p1"))
		time.Sleep(c.times.leave / 2)
		f.push(removal(AuthorizationType, "p3", "ns/p1", "ns/p2")) // the second time for one
		f.push(response(AddressType, "a2", pod("w1", "2", "ns/p1", "ns/p2")))
		if !there("ns/p1") || !there("ns/p2") {
			t.Error("they are gone at once")
		}
		time.Sleep(c.times.leave / 2)
		synctest.Wait()
		if there("ns/p1") || !there("ns/p2") {
			t.Errorf("after its time ns/p1 is there: %v, and ns/p2 before its: %v", there("ns/p1"), there("ns/p2"))
		}
		time.Sleep(c.times.leave / 2)
		synctest.Wait()
		if there("ns/p2") || len(missing(store.View(), "w1")) != 2 {
			t.Error("ns/p2 stays for ever")
		}
	})
}

// What comes again while it leaves does not leave.
func TestPoliciesComeBack(t *testing.T) {
	for name, again := range map[string]func() *discovery.DeltaDiscoveryResponse{
		"as another version": func() *discovery.DeltaDiscoveryResponse { return response(AuthorizationType, "p3", policy("p1", "2")) },
		"so that it cannot be read": func() *discovery.DeltaDiscoveryResponse {
			return response(AuthorizationType, "p3", badPolicy("p1"))
		},
		"in the response that it goes with": func() *discovery.DeltaDiscoveryResponse {
			r := response(AuthorizationType, "p3", policy("p1", "2"))
			r.RemovedResources = []string{"ns/p1"}
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
				f.push(response(AddressType, "a1", pod("w1", "1", "ns/p1")))
				f.push(response(AuthorizationType, "p1", policy("p1", "1")))
				f.push(removal(AuthorizationType, "p2", "ns/p1"))
				f.push(again())
				time.Sleep(2 * c.times.leave)
				synctest.Wait()
				if store.View().Policy("ns/p1") == nil {
					t.Error("it is gone")
				}
			})
		})
	}
}

// A workload that waits for its policy may name one that leaves; so may one that is not in
// the store yet.
func TestPoliciesLeaveWhileWorkloadsWait(t *testing.T) {
	bubble(t, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		defer store.OnSwap(func(_, v *workload.View) {
			if names := missing(v, "w1"); len(names) > 0 {
				t.Errorf("w1 is without %v", names)
			}
		})()
		f.push(response(AuthorizationType, "p1", policy("p1", "1")))
		f.push(response(AddressType, "a1", pod("w1", "1", "ns/p1", "ns/p2"))) // waits for p2
		gone := response(AuthorizationType, "p2", policy("p2", "1"))
		gone.RemovedResources = []string{"ns/p1"}
		f.push(gone)
		if v := store.View(); v.WorkloadByUID("w1") == nil || v.Policy("ns/p1") == nil {
			t.Error("w1 waits, or ns/p1 is gone")
		}
	})
}

// What was leaving when the stream broke is told to the control plane, which says again
// that it is gone.
func TestLeavingAtTheEnd(t *testing.T) {
	var client *Client
	bubble(t, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		client = c
		f.push(response(AddressType, "a1", pod("w1", "1", "ns/p1")))
		f.push(response(AuthorizationType, "p1", policy("p1", "1")))
		f.push(removal(AuthorizationType, "p2", "ns/p1"))
	})
	if told := client.ledgers[policies].initial(initialBudget); told["ns/p1"] != "1" {
		t.Errorf("the next stream is told %v", told)
	}
}
