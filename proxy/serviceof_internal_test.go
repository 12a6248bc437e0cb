package proxy

import (
	"testing"

	"github.com/warren-mesh/warren/xds/workload"
)

// TestServiceOf: telemetry names the service that the client says, else the first of the
// pod's that has the port.
func TestServiceOf(t *testing.T) {
	store := workload.NewStore()
	self := &workload.Workload{UID: "w"}
	add := func(name string, port, target uint16) {
		s := &workload.Service{Name: name, Namespace: "ns", Hostname: name + ".example", Ports: workload.NewPortMap(workload.Port{Service: port, Target: target})}
		store.Apply(workload.Batch{Services: []*workload.Service{s}})
		self.Services = append(self.Services, workload.Membership{Service: s.Key()})
	}
	add("a", 80, 8080)
	add("b", 81, 8081)
	add("c", 82, 8081)
	self.Services = append(self.Services, workload.Membership{Service: workload.NamespacedHostname{Namespace: "ns", Hostname: "unknown.example"}})
	self.Services[2].Ports = workload.NewPortMap(workload.Port{Service: 82, Target: 9000})
	for _, c := range []struct {
		host string
		port uint16
		want string
	}{
		{"", 8080, "a"}, {"", 8081, "b"}, {"", 9000, "c"}, {"", 80, ""},
		{"C.example", 8080, "c"}, {"unknown.example", 8081, "b"}, {"elsewhere.example", 8081, "b"},
	} {
		got := ""
		if s := serviceOf(store.View(), self, c.host, c.port); s != nil {
			got = s.Name
		}
		if got != c.want {
			t.Errorf("%q, port %d: %q, want %q", c.host, c.port, got, c.want)
		}
	}
}
