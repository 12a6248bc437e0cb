package proxy_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/xds/workload"
)

// Pods, policies, workloads and connections come and go at once. It is for the
// race detector, and for what stays behind.
func TestChurn(t *testing.T) {
	m := newMesh(t, 2)
	client, near := m.nodes[0].meshPod("client"), m.nodes[0].meshPod("near")
	server, outside := m.nodes[1].meshPod("server"), m.nodes[1].pod("outside")
	for _, p := range []*pod{near, server} {
		p.echo(8080)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	loop := func(f func()) {
		wg.Go(func() {
			for ctx.Err() == nil {
				f()
			}
		})
	}
	for _, from := range []*pod{client, outside, near} {
		for _, to := range []*pod{near, server} {
			loop(func() { _, _, _ = from.call(to.addr(8080), "x") }) // some get through
		}
	}
	loop(func() {
		m.apply(workload.Batch{Policies: []*workload.Policy{deny("p", workload.Match{Principals: principals(client)})}})
		m.apply(workload.Batch{RemovedPolicies: []string{"default/p"}})
	})
	loop(func() {
		m.apply(workload.Batch{RemovedAddresses: []string{near.w.UID}})
		m.apply(workload.Batch{Workloads: []*workload.Workload{near.w}})
	})
	loop(func() {
		h := m.nodes[1].srv.Handler()
		_ = h.Del(ctx, server.uid)
		if ns, err := server.NS.Dup(); err == nil {
			info := zds.Info{Name: server.w.Name, Namespace: server.w.Namespace, ServiceAccount: server.w.ServiceAccount}
			_ = h.Add(ctx, zds.Workload{UID: server.uid, NS: ns, Info: info})
		}
	})
	loop(func() {
		for _, n := range m.nodes {
			_, _ = n.srv.Gatherer().Gather()
			n.srv.Tracked().Snapshot()
		}
	})
	wg.Wait()
	server.serve(m.nodes[1])
	m.apply(workload.Batch{Workloads: []*workload.Workload{near.w}, RemovedPolicies: []string{"default/p"}})
	client.mustCall(server.addr(8080))
	client.mustCall(near.addr(8080))
	for _, n := range m.nodes {
		until(t, "nothing is left", func() bool { return n.srv.Tracked().Len() == 0 })
	}
	m.stop()
	for _, n := range m.nodes {
		if left := n.srv.Sockets(); left != 0 {
			t.Errorf("%s: %d sockets were not given back", n.Name, left)
		}
	}
}
