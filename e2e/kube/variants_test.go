//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/e2e/kube"
	"github.com/warren-mesh/warren/e2e/kube/app"
)

// TestNFTables: the same with rules in nftables, made without any program.
func TestNFTables(t *testing.T) {
	variant(t, kube.Set("nodeagent.redirect=nftables")...)
	for _, node := range mesh.Nodes {
		st, err := mesh.NodeStatus(testContext(t), node)
		must(t, err)
		if !strings.Contains(st.Agent.Detail, "nftables") {
			t.Errorf("%s: the agent says %q", node, st.Agent.Detail)
		}
	}
	t.Setenv("E2E_CYCLES", "5")
	for _, core := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"EnrolledAtADD", TestEnrolledAtADD}, {"Paths", TestPaths}, {"LabelLive", TestLabelLive}, {"LabelUnderLoad", TestLabelUnderLoad},
		{"Probes", TestProbes}, {"PeerAuthentication", TestPeerAuthentication}, {"StatefulSet", TestStatefulSet},
		{"TakenOverFromIstio", TestTakenOverFromIstio},
	} {
		t.Run(core.name, core.run)
	}
	t.Run("NoIPTables", func(t *testing.T) {
		ns := namespace(t, in)
		p := run(t, mesh.WithTools(kube.PodSpec{Namespace: ns, Name: "a", Node: mesh.Nodes[0]}))[0]
		awaitCaptured(t, p)
		if found, err := mesh.Chains(testContext(t), p); err != nil || len(found) > 0 {
			t.Errorf("iptables has %q, %v", found, err)
		}
	})
}

// TestChangedBackend: pods keep the rules that they have when the agent's successor
// makes others, and leave with them.
func TestChangedBackend(t *testing.T) {
	ns := namespace(t, in)
	p := run(t, mesh.WithTools(kube.PodSpec{Namespace: ns, Name: "a", Node: mesh.Nodes[0]}), kube.PodSpec{Namespace: ns, Name: "b", Node: mesh.Nodes[1]})
	awaitCaptured(t, p...)
	chains(t, p[0], ours)
	variant(t, kube.Set("nodeagent.redirect=nftables")...)
	awaitCaptured(t, p...)
	chains(t, p[0], ours)
	began := time.Now().Add(-time.Second)
	mustCall(t, p[0], url("http", p[1], app.HTTPPort))
	must(t, mesh.WaitMutual(testContext(t), began, p[0], p[1]))
	must(t, mesh.Label(testContext(t), ns, "", map[string]string{"istio.io/dataplane-mode": ""}))
	awaitLeft(t, p...)
	chains(t, p[0], nobodys)
	mustCall(t, p[0], url("http", p[1], app.HTTPPort))
}

// TestManifests: the API server takes every rendered manifest, and would do so of each
// field.
func TestManifests(t *testing.T) {
	ctx := testContext(t)
	tries := map[string][]string{"values": nil}
	for _, set := range []string{
		"podMonitors.enabled=true", "dashboard.enabled=true", "resourceQuota.enabled=true", "openshift.enabled=true", "nodeagent.admissionPolicy=false",
		"nodeagent.removeTaints[0]=cni.istio.io/not-ready", "nodeagent.redirect=nftables", "mesh.ipv6=false", "mesh.dnsCapture=true",
		"proxy.env.SAME_NODE=mtls", "nodeagent.cni.install=false", "proxy.resources.limits.memory=1Gi", "nodeagent.seLinuxOptions.type=spc_t",
	} {
		tries[set] = kube.Set(set)
	}
	profiles, err := renderer.Profiles()
	must(t, err)
	for _, p := range profiles {
		tries[filepath.Base(p)] = []string{"-f", p}
	}
	for name, args := range tries {
		t.Run(name, func(t *testing.T) {
			objects, err := renderer.Chart(ctx, args...)
			must(t, err)
			dryRun(t, objects)
		})
	}
	overlays, err := renderer.Overlays()
	must(t, err)
	for _, folder := range overlays {
		t.Run("overlay "+filepath.Base(folder), func(t *testing.T) {
			objects, err := renderer.Kustomize(ctx, folder)
			must(t, err)
			dryRun(t, objects)
		})
	}
}

// dryRun asks the API server for everything but to do it. The objects' namespaces must
// be there, and kinds of others are looked at where they are served.
func dryRun(t *testing.T, objects kube.Objects) {
	t.Helper()
	ctx := testContext(t)
	for _, o := range objects {
		ns := o.GetNamespace()
		if ns == "" || ns == kube.SystemNamespace {
			continue
		}
		if _, err := mesh.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{}); err == nil {
			continue
		}
		_, err := mesh.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
		must(t, err)
		t.Cleanup(func() {
			_ = mesh.CoreV1().Namespaces().Delete(context.Background(), ns, metav1.DeleteOptions{})
			must(t, kube.Until(testContext(t), 2*time.Minute, ns+" is gone", func(ctx context.Context) error {
				if _, err := mesh.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{}); err == nil {
					return fmt.Errorf("it is there")
				}
				return nil
			}))
		})
	}
	must(t, mesh.Apply(ctx, objects, metav1.DryRunAll))
}

const entries = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: named, namespace: NS}
spec:
  hosts: [named.example]
  addresses: [240.240.77.1]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints: [{address: FAR}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: selects, namespace: NS}
spec:
  hosts: [selects.example]
  addresses: [240.240.77.2]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {labels: {entry: "yes"}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: machine, namespace: NS, labels: {entry: "yes"}}
spec: {address: OUTSIDE, serviceAccount: machine}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: nonsense, namespace: NS}
spec: {hosts: ["*", ""], addresses: [not an address], ports: [{number: 99999}], resolution: PERHAPS, endpoints: [{address: "..."}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: nonsense, namespace: NS, labels: {entry: "yes"}}
spec: {address: "300.1.2.3", ports: {http: -1}}
`

// TestEntries: ServiceEntries and WorkloadEntries lead to pods and machines outside of
// Kubernetes' Services; nonsense among them holds up nobody.
func TestEntries(t *testing.T) {
	e := newEnds(t)
	apply(t, e.ns, strings.NewReplacer("FAR", e.far.Status.PodIP, "OUTSIDE", e.outsideFar.Status.PodIP).Replace(entries))
	for vip, want := range map[string]string{"240.240.77.1": "far", "240.240.77.2": "outside-far"} {
		must(t, kube.Until(testContext(t), time.Minute, "a reaches "+want+" by "+vip, func(ctx context.Context) error {
			r, err := mesh.Call(ctx, e.ns, "a", "http://"+vip+":80")
			if err == nil && (!r.OK || r.Answer.Pod != want) {
				err = fmt.Errorf("%+v", r)
			}
			return err
		}))
	}
	mustNotCall(t, e.outside, "http://240.240.77.1:80") // nobody else knows such an address
}
