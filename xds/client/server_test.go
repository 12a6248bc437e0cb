package client

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"github.com/warren-mesh/warren/xds/server"
	"github.com/warren-mesh/warren/xds/workload"
)

// controlPlane is Warren's ADS server at a path.
func controlPlane(t *testing.T, path string) (s *server.Server, stop func()) {
	t.Helper()
	s = server.New(server.Config{
		Authenticate: func(context.Context) (string, error) { return "node", nil },
		Log:          slog.New(slog.DiscardHandler), Debounce: time.Millisecond,
	})
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(server.ServerOptions()...)
	s.Register(g)
	var serving sync.WaitGroup
	serving.Go(func() { _ = g.Serve(l) })
	stop = sync.OnceFunc(func() {
		s.Shutdown()
		g.Stop()
		serving.Wait()
		s.Wait()
	})
	t.Cleanup(stop)
	return s, stop
}

func snapshot(t *testing.T, m server.Model) *server.Snapshot {
	t.Helper()
	s, err := server.NewSnapshot(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func guarded(uid, revision string, policies ...string) *workload.Workload {
	return &workload.Workload{
		UID: uid, Name: uid, Namespace: "ns", TrustDomain: workload.DefaultTrustDomain,
		ServiceAccount: workload.DefaultServiceAccount, ClusterID: workload.DefaultCluster,
		CanonicalRevision: revision, Policies: policies,
	}
}

func allow(name string) *workload.Policy {
	return &workload.Policy{Name: name, Namespace: "ns", Scope: workload.ScopeSelector}
}

// The two ends of Warren's own, through changes and a restart of the server.
func TestAgainstServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "xds.sock")
	s, stop := controlPlane(t, path)
	o := newObserver()
	c, store := newClient(t, Config{Address: "unix://" + path, Observer: o})
	defer store.OnSwap(func(_, v *workload.View) {
		for _, w := range v.Workloads() {
			if missing := v.PoliciesFor(w).Missing; len(missing) > 0 {
				t.Errorf("%s is without %v", w.UID, missing)
			}
		}
	})()
	run(t, c)
	model := server.Model{
		Workloads: []*workload.Workload{guarded("w1", "1", "ns/p1"), guarded("w2", "1")},
		Services:  []*workload.Service{{Name: "s", Namespace: "ns", Hostname: "s.example"}},
		Policies:  []*workload.Policy{allow("p1")},
	}
	s.SetSnapshot(snapshot(t, model))
	select {
	case <-c.Synced():
	case <-time.After(patience):
		t.Fatalf("not synced: %+v", c.Status())
	}
	holds := func(what string, m server.Model) {
		t.Helper()
		same := func(v *workload.View) string {
			uids, policies := map[string]string{}, map[string]bool{}
			for _, w := range m.Workloads {
				uids[w.UID] = w.CanonicalRevision
			}
			for _, p := range m.Policies {
				policies[p.ResourceName()] = true
			}
			gotUIDs, gotPolicies := map[string]string{}, map[string]bool{}
			for _, w := range v.Workloads() {
				gotUIDs[w.UID] = w.CanonicalRevision
			}
			for _, p := range v.Policies() {
				gotPolicies[p.ResourceName()] = true
			}
			return cmp.Diff(uids, gotUIDs) + cmp.Diff(policies, gotPolicies) + cmp.Diff(len(m.Services), len(v.Services()))
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := store.Wait(ctx, func(v *workload.View) bool { return same(v) == "" }); err != nil {
			t.Fatalf("%s: %v (-want +got): %s", what, err, same(store.View()))
		}
	}
	holds("at first", model)
	model.Workloads = []*workload.Workload{guarded("w1", "2", "ns/p1", "ns/p2"), guarded("w3", "1")}
	model.Policies = append(model.Policies, allow("p2"))
	s.SetSnapshot(snapshot(t, model))
	holds("after a change", model)
	model.Workloads, model.Policies = []*workload.Workload{guarded("w1", "3"), guarded("w3", "1")}, nil
	s.SetSnapshot(snapshot(t, model))
	holds("after policies left", model)

	stop()
	if r := o.reasons(t, 1); r[0] == ConnectionError {
		t.Errorf("the end of a good connection counts as %s", r)
	}
	if v := store.View(); v.WorkloadByUID("w1") == nil {
		t.Error("the state went with the connection")
	}
	before := store.View()
	s, _ = controlPlane(t, path)
	model.Workloads = []*workload.Workload{guarded("w1", "3"), guarded("w4", "1", "ns/p3")}
	model.Services, model.Policies = nil, []*workload.Policy{allow("p3")}
	s.SetSnapshot(snapshot(t, model))
	holds("after a restart", model)
	if before.WorkloadByUID("w1") != store.View().WorkloadByUID("w1") {
		t.Error("what had not changed was sent again")
	}
}
