package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/warren-mesh/warren/xds/workload"
)

// testView is the mesh of all tests: namespaces app, db and dev.
func testView() *workload.View {
	vip := func(texts ...string) (out []workload.NetworkAddr) {
		for _, t := range texts {
			network, ip, _ := strings.Cut(t, "/")
			out = append(out, workload.NetworkAddr{Network: network, Addr: netip.MustParseAddr(ip)})
		}
		return out
	}
	service := func(ns, host string, vips ...string) *workload.Service {
		name, _, _ := strings.Cut(host, ".")
		return &workload.Service{Name: name, Namespace: ns, Hostname: host, VIPs: vip(vips...)}
	}
	with := func(s *workload.Service, f func(*workload.Service)) *workload.Service { f(s); return s }
	private := func(s *workload.Service) { s.Visibility = workload.NamespacePrivate }
	endpoint := func(n int, network string, status workload.Status, host string, addrs ...string) *workload.Workload {
		w := &workload.Workload{
			UID: fmt.Sprint("w", n), Name: fmt.Sprint("w", n), Namespace: "db", Network: network, Status: status,
			Services: workload.Memberships{{Service: workload.NamespacedHostname{Namespace: "db", Hostname: host}}},
		}
		for _, a := range addrs {
			w.Addresses = append(w.Addresses, netip.MustParseAddr(a))
		}
		return w
	}
	const headless, far = "pg.db.svc.cluster.local", "far.db.svc.cluster.local"
	store := workload.NewStore()
	store.Apply(workload.Batch{
		Services: []*workload.Service{
			service("app", "web.app.svc.cluster.local", "/10.0.0.1", "/fd00::1", "other/10.9.9.9"),
			service("dev", "web.dev.svc.cluster.local", "/10.0.0.2"),
			service("db", headless), service("db", far), service("db", "empty.db.svc.cluster.local"),
			service("app", "api.example.com", "/240.240.0.1"),
			service("app", "*.wild.example.com", "/240.240.0.2"),
			service("app", "exact.wild.example.com", "/240.240.0.3"),
			service("app", "none.example.com"),
			with(service("app", "cidr.example.com"), func(s *workload.Service) {
				s.CIDRs = []workload.NetworkPrefix{{Prefix: netip.MustParsePrefix("10.1.0.0/16")}}
			}),
			service("app", "elsewhere.example.com", "other/10.9.9.8"),
			with(service("app", "v4.example.com", "/240.240.0.4", "/fd00::4"), func(s *workload.Service) { s.IPFamilies = workload.IPv4Only }),
			with(service("app", "v6.example.com", "/240.240.0.5", "/fd00::5"), func(s *workload.Service) { s.IPFamilies = workload.IPv6Only }),
			// One host in several namespaces.
			with(service("aaa", "shared.example.com", "/240.240.1.1"), private),
			service("bbb", "shared.example.com", "/240.240.1.2"),
			with(service("ccc", "shared.example.com", "/240.240.1.3"), func(s *workload.Service) { s.Canonical = true }),
			service("dev", "shared.example.com", "/240.240.1.4"),
			service("bbb", "liked.example.com", "/240.240.1.5"),
			service("ddd", "liked.example.com", "/240.240.1.6"),
			// One that is not ours to answer for must not hide one that is.
			service("app", "half.example.com"), service("bbb", "half.example.com", "/240.240.1.7"),
			// A service whose name reads like that of a pod of pg.
			service("pg", "pg-0.pg.svc.cluster.local", "/10.0.0.66"),
		},
		Workloads: []*workload.Workload{
			endpoint(1, "", workload.Healthy, headless, "10.2.0.1", "fd00:2::1"),
			endpoint(2, "", workload.Healthy, headless, "10.2.0.2"),
			endpoint(3, "", workload.Unhealthy, headless, "10.2.0.3"),
			endpoint(4, "other", workload.Healthy, headless, "10.2.0.4"),
			endpoint(5, "", workload.Healthy, headless, "10.2.0.2"), // on the host's network as well
			endpoint(6, "other", workload.Healthy, far, "10.2.0.6"),
		},
	})
	return store.View()
}

func TestResolve(t *testing.T) {
	tests := []struct {
		name, ask, ns, want string
	}{
		{"a service by its whole name", "A web.app.svc.cluster.local", "app", "local 10.0.0.1"},
		{"its other family", "AAAA web.app.svc.cluster.local", "app", "local fd00::1"},
		{"another type", "SRV web.app.svc.cluster.local", "app", "forward"},
		{"no name", "A ", "app", "forward"},
		{"unknown", "A example.org", "app", "forward"},
		{"unknown in the cluster", "A nothing.app.svc.cluster.local", "app", "forward"},

		{"one label", "A web", "app", "local 10.0.0.1"},
		{"one label elsewhere", "A web", "dev", "local 10.0.0.2"},
		{"one label of nobody", "A web", "db", "forward"},
		{"under svc", "A web.app.svc", "db", "local 10.0.0.1"},
		{"two labels may be public", "A web.dev", "app", "fallback 10.0.0.2"},
		{"three labels may be public", "A web.app.other", "app", "forward"},

		{"the client's own search domain", "A web.app.svc.cluster.local.app.svc.cluster.local", "app", "local web.app.svc.cluster.local 10.0.0.1"},
		{"a host with a search domain", "A api.example.com.db.svc.cluster.local", "db", "local api.example.com 240.240.0.1"},
		{"with the second", "A api.example.com.svc.cluster.local", "db", "local api.example.com 240.240.0.1"},
		{"with the third", "A api.example.com.cluster.local", "db", "local api.example.com 240.240.0.1"},
		{"with another's", "A api.example.com.dev.svc.cluster.local", "db", "forward"},
		{"a short name with a search domain", "A web.dev.app.svc.cluster.local", "app", "local web.dev 10.0.0.2"},
		{"no boundary of labels", "A api.example.comcluster.local", "db", "forward"},
		{"the search domain alone", "A db.svc.cluster.local", "db", "forward"},

		{"a wildcard", "A a.b.wild.example.com", "app", "local 240.240.0.2"},
		{"closer than a wildcard", "A exact.wild.example.com", "app", "local 240.240.0.3"},
		{"a wildcard is not its own parent", "A wild.example.com", "app", "forward"},
		{"a wildcard with a search domain", "A x.wild.example.com.app.svc.cluster.local", "app", "local 240.240.0.2"},

		{"headless, two on one host", "A pg.db.svc.cluster.local", "app", "local 10.2.0.1 10.2.0.2 10.2.0.2"},
		{"headless, other family", "AAAA pg.db.svc.cluster.local", "app", "local fd00:2::1"},
		{"headless, nobody near", "A far.db.svc.cluster.local", "app", "local 10.2.0.6"},
		{"headless, no such family", "AAAA far.db.svc.cluster.local", "app", "local"},
		{"headless, nobody at all", "A empty.db.svc.cluster.local", "app", "forward"},
		{"a pod of it", "A pg-0.pg.db.svc.cluster.local", "app", "forward"},
		{"a pod of it, as its neighbours ask", "A pg-0.pg.db.svc.cluster.local", "db", "forward"},
		{"a port of it", "SRV _sql._tcp.pg.db.svc.cluster.local", "db", "forward"},
		{"a service that reads like a pod", "A pg-0.pg.svc.cluster.local", "db", "local 10.0.0.66"},

		{"no address", "A none.example.com", "app", "forward"},
		{"a range only", "A cidr.example.com", "app", "forward"},
		{"addresses of another network", "A elsewhere.example.com", "app", "local"},
		{"IPv4 only", "AAAA v4.example.com", "app", "local"},
		{"IPv4 only, A", "A v4.example.com", "app", "local 240.240.0.4"},
		{"IPv6 only", "A v6.example.com", "app", "local"},
		{"IPv6 only, AAAA", "AAAA v6.example.com", "app", "local fd00::5"},

		{"the canonical one", "A shared.example.com", "app", "local 240.240.1.3"},
		{"its own", "A shared.example.com", "bbb", "local 240.240.1.2"},
		{"its own private one", "A shared.example.com", "aaa", "local 240.240.1.1"},
		{"the preferred namespace", "A liked.example.com", "app", "local 240.240.1.6"},
		{"past one without address", "A half.example.com", "app", "local 240.240.1.7"},
		{"too many labels", "A " + strings.Repeat("a.", 40) + "wild.example.com", "app", "forward"},
	}
	v, z := testView(), &Zone{Prefer: "ddd", IPv6: true}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, resolve(z, v, tt.ns, tt.ask)); d != "" {
				t.Errorf("%s from %s (-want +got):\n%s", tt.ask, tt.ns, d)
			}
		})
	}
}

func TestResolveElsewhere(t *testing.T) {
	v := testView()
	for _, tt := range []struct {
		name, ask, want string
		z               Zone
	}{
		{"no IPv6", "AAAA web.app.svc.cluster.local", "local", Zone{}},
		{"another domain", "A web", "forward", Zone{Domain: "example.com"}},
		{"search domains of its own", "A api.example.com.corp.example", "local api.example.com 240.240.0.1", Zone{Search: []string{"corp.example"}}},
		{"and none of Kubernetes", "A api.example.com.app.svc.cluster.local", "forward", Zone{Search: []string{"corp.example"}}},
		{"of part of the mesh", "A web.app.svc.cluster.local", "forward", Zone{Partial: true}},
		{"no search domain", "A api.example.com.app.svc.cluster.local", "forward", Zone{Search: []string{}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := resolve(&tt.z, v, "app", tt.ask); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func resolve(z *Zone, v *workload.View, ns, ask string) string {
	qtype, name, _ := strings.Cut(ask, " ")
	d := z.Resolve(v, Client{Namespace: ns}, name, dns.StringToType[qtype])
	out := []string{d.Verdict.String()}
	if d.Alias != "" {
		out = append(out, d.Alias)
	}
	for _, a := range d.Addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}
