package server

import (
	"runtime"
	"testing"
	"time"
	"weak"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/warren-mesh/warren/xds/workload"
)

// TestSlowClientsKeepNoModel: of a snapshot that a client was sent and has not answered
// the resources are kept, not what they were made of.
func TestSlowClientsKeepNoModel(t *testing.T) {
	s, open := start(t, Config{Debounce: time.Millisecond})
	set := func(prev *Snapshot, name string) (*Snapshot, weak.Pointer[workload.Workload]) {
		m := town(func(m *Model) { m.Workloads[0].CanonicalName = name })
		next := build(t, prev, m)
		s.SetSnapshot(next)
		return next, weak.Make(m.Workloads[0])
	}
	one, old := set(nil, "old")
	for _, request := range []*discovery.DeltaDiscoveryRequest{{TypeUrl: AddressType}, demanding(nil, "app/web")} {
		st := open("a")
		if err := st.Send(request); err != nil {
			t.Fatal(err)
		}
		receive(t, st)
	}
	two, _ := set(one, "new")
	for now, changed := s.states.newest(); now != two; now, changed = s.states.newest() {
		<-changed
	}
	for deadline := time.Now().Add(10 * time.Second); old.Value() != nil; runtime.GC() {
		if time.Now().After(deadline) {
			t.Fatal("the model of a snapshot that is not the newest is in memory still")
		}
	}
	runtime.KeepAlive(s)
}

// TestUnchangedTypeIsShared: what is all as it was exists once.
func TestUnchangedTypeIsShared(t *testing.T) {
	one := world{map[string][]string{"w": nil}, map[string]workload.Action{"p": 1}}.snapshot(t, nil)
	two := world{map[string][]string{"w": {"ns/p"}}, map[string]workload.Action{"p": 1}}.snapshot(t, one)
	if one.types[policies] != two.types[policies] || one.types[addresses] == two.types[addresses] {
		t.Error("want the policies shared, and the addresses not")
	}
}
