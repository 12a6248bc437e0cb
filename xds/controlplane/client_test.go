package controlplane

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
	xdsclient "github.com/warren-mesh/warren/xds/client"
	"github.com/warren-mesh/warren/xds/workload"
)

// TestClientFollows has our own client and control plane talk over TLS, through a
// change of policy and a restart of the control plane.
func TestClientFollows(t *testing.T) {
	p := start(t, nil)
	p.write("mesh.yaml", meshYAML)
	store := workload.NewStore()
	roots := func() ([]byte, error) { return os.ReadFile(filepath.Join(p.cfg.StateDir, "root-cert.pem")) }
	c, err := xdsclient.New(xdsclient.Config{
		Address: "https://" + p.cp.Addr().String(),
		TLS:     func() (*tls.Config, error) { return mtls.ToServer(roots, "127.0.0.1", ""), nil },
		Token:   func() (string, error) { return tokenA + "\n", nil },
		Node:    xdsclient.Node{PodName: "proxy", Namespace: "istio-system", NodeName: "node-a"},
		Log:     slog.New(slog.DiscardHandler),
	}, store)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = c.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	wait := func(what string, ok func(*workload.View) bool) {
		t.Helper()
		within, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		if err := store.Wait(within, ok); err != nil {
			t.Fatalf("%s: %v; client %+v", what, err, c.Status())
		}
	}
	guarded := func(v *workload.View) bool {
		w := v.WorkloadByUID(webWorkload)
		return w != nil && len(w.Policies) == 1 && v.Policy(w.Policies[0]) != nil
	}
	wait("the model", func(v *workload.View) bool {
		w := v.WorkloadByUID(webWorkload)
		return w != nil && w.Protocol == workload.HBONE && len(w.Services) == 1 && len(v.Services()) == 1
	})
	<-c.Synced()
	// At no time does the workload name a policy that is not there.
	defer store.OnSwap(func(_, v *workload.View) {
		if w := v.WorkloadByUID(webWorkload); w != nil {
			for _, name := range w.Policies {
				if v.Policy(name) == nil {
					t.Errorf("policy %s is named and missing", name)
				}
			}
		}
	})()
	p.write("policy.yaml", policyYAML)
	wait("a policy", guarded)

	again := p.cfg
	again.Listen = p.cp.Addr().String()
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if !guarded(store.View()) {
		t.Error("the model is gone with the control plane")
	}
	if err := os.Remove(filepath.Join(p.dir, "policy.yaml")); err != nil {
		t.Fatal(err)
	}
	start(t, func(c *Config) { *c = again })
	wait("what changed meanwhile", func(v *workload.View) bool {
		w := v.WorkloadByUID(webWorkload)
		return w != nil && len(w.Policies) == 0 && len(v.Policies()) == 0
	})
}
