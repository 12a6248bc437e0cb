package proxy

import (
	"testing"

	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/xds/workload"
)

// Who stands in for a pod that the control plane does not know yet is of its node and
// cluster: by the network of anybody else the mesh would be unknown, and get plaintext.
func TestStandIn(t *testing.T) {
	var mesh workload.Batch
	add := func(uid, node, cluster, network string) {
		mesh.Workloads = append(mesh.Workloads, &workload.Workload{UID: uid, Name: uid, Node: node, ClusterID: cluster, Network: network, TrustDomain: "td." + network})
	}
	add("NetworkGateway/n2/172.18.0.1/15008", "", "", "n2")
	add("of another cluster", "worker", "c2", "n2")
	for _, tt := range []struct{ node, local, want string }{
		{"", "", ""}, // a node's name is not known: nobody is of it
		{"worker", "", ""},
		{"worker", "c1", "n1"},
		{"", "c1", ""},
	} {
		if tt.local != "" {
			add("of the node", "worker", tt.local, "n1")
		}
		cfg := Defaults()
		cfg.NodeName, cfg.ClusterID = tt.node, "c1"
		store := workload.NewNodeStore(cfg.NodeName)
		store.Apply(mesh)
		p := &pod{s: &Server{cfg: cfg}, info: zds.Info{Name: "new", Namespace: "default", ServiceAccount: "sa"}}
		got := "" // waits for the control plane
		if w := p.speaking(store.View()); w != nil {
			if got = w.Network; w.TrustDomain != "td."+got {
				t.Errorf("%+v: trust domain %s in network %s", tt, w.TrustDomain, got)
			}
		}
		if got != tt.want {
			t.Errorf("%+v: network %q", tt, got)
		}
	}
}

// A pod is not its namesake in another cluster whose node has the name of this one: what
// guards that one guards nothing here.
func TestNamesake(t *testing.T) {
	cfg := Defaults()
	cfg.NodeName, cfg.ClusterID = "worker", "west"
	p := &pod{s: &Server{cfg: cfg}, info: zds.Info{Name: "web-0", Namespace: "ns", ServiceAccount: "sa"}}
	named := func(cluster, name string) *workload.Workload {
		return &workload.Workload{UID: cluster + "//Pod/ns/" + name, Name: name, Namespace: "ns", ServiceAccount: "sa", Node: "worker", ClusterID: cluster}
	}
	store := workload.NewNodeStore(cfg.NodeName)
	for _, step := range []struct {
		what string
		add  *workload.Workload
		want string // UID
	}{
		{"the control plane may call this cluster by another name", named("east", "web-0"), "east//Pod/ns/web-0"},
		{"but it does not", named("west", "other"), ""},
		{"nor does anybody become it", named("east", "web-1"), ""},
		{"its own", named("west", "web-0"), "west//Pod/ns/web-0"},
	} {
		store.Apply(workload.Batch{Workloads: []*workload.Workload{step.add}})
		for how, of := range map[string]func(*workload.View) *workload.Workload{"find": p.find, "current": p.current} {
			got := ""
			if w := of(store.View()); w != nil {
				got = w.UID
			}
			if got != step.want {
				t.Errorf("%s: %s %q, want %q", step.what, how, got, step.want)
			}
		}
		if w := p.speaking(store.View()); w == nil || w.UID != step.want || w.UID == "" && w.ClusterID != "west" { // who stands in is of this cluster
			t.Errorf("%s: speaks as %+v", step.what, w)
		}
	}
	// What is known of the pod itself outlives it.
	store.Apply(workload.Batch{RemovedAddresses: []string{"west//Pod/ns/web-0"}})
	if w := p.current(store.View()); w == nil || w.UID != "west//Pod/ns/web-0" {
		t.Errorf("after its end: %+v", w)
	}
}
