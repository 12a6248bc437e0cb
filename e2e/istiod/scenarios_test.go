//go:build istiod

package istiod

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// The scenarios are those of Istio's own integration tests for ambient that need no
// waypoint's Envoy; each names the one that it stands for.

// TestServices: every service port from every kind of source, at layer 4, with the
// client's own address.
func TestServices(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		for _, from := range []*onehost.Pod{w.client, w.other} {
			for _, port := range []int{80, 9090} {
				spread(t, from, at(webVIP, port), "app/server", "app/second")
			}
			r, err := call(from, at(webVIP, 80))
			if err != nil || r.sees != from.IP4() {
				t.Errorf("the server sees %s, the client is %s: %v", r.sees, from.IP4(), err)
			}
			w.refused(t, from, at(webVIP, 84), "connection refused") // nobody listens there
			w.refused(t, from, at(webVIP, 81), "no healthy upstream: "+webVIP+":81")
		}
	})
}

// TestPodIP: a pod's address reaches that pod, in both families, its own included.
func TestPodIP(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		for _, from := range []*onehost.Pod{w.client, w.server, w.outside} {
			for _, to := range []*onehost.Pod{w.server, w.second, w.outsideServer, from} {
				want := to.Spec.Namespace + "/" + to.Spec.Name
				reaches(t, from, netip.AddrPortFrom(to.IP4(), 18080), want)
				reaches(t, from, netip.AddrPortFrom(to.IP6(), 19090), want)
			}
		}
	})
}

// TestIdentities: connections between pods of the mesh are carried with the identities
// of both, others in the clear.
func TestIdentities(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		for _, c := range []struct {
			from, to   *onehost.Pod
			directions []string
			src, dst   string
		}{
			{w.client, w.server, []string{"outbound", "inbound"}, "spiffe://cluster.local/ns/app/sa/client", "spiffe://cluster.local/ns/app/sa/server"},
			{w.client, w.outsideServer, []string{"outbound"}, "", ""},
			{w.outside, w.server, []string{"inbound"}, "", ""},
		} {
			reaches(t, c.from, on(c.to, 18080))
			logs := w.AccessLogs()
			if _, err := call(c.from, on(c.to, 18080)); err != nil {
				t.Error(err)
			}
			lines, err := logs.Wait(t.Context(), c.from.IPs, c.to.IPs, c.directions)
			if err != nil {
				t.Error(err)
			}
			for _, l := range lines {
				if l.SrcIdentity != c.src || l.DstIdentity != c.dst {
					t.Errorf("%s: %q → %q, want %q → %q", l.Direction, l.SrcIdentity, l.DstIdentity, c.src, c.dst)
				}
			}
		}
	})
}

// TestBogusUseWaypoint: a label that names no waypoint does not break traffic.
func TestBogusUseWaypoint(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.put(t, "Service", "app", "bogus", `apiVersion: v1
kind: Service
metadata: {name: bogus, namespace: app, labels: {istio.io/use-waypoint: not-a-waypoint}}
spec: {clusterIP: 10.96.10.20, clusterIPs: [10.96.10.20], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 18080}]}
`)
		spread(t, w.client, at("10.96.10.20", 80), "app/server", "app/second")
	})
}

// TestNoEndpoints: a service behind which there is nobody refuses, and does not pass on
// what was meant for it.
func TestNoEndpoints(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		w.put(t, "Service", "app", "empty", `apiVersion: v1
kind: Service
metadata: {name: empty, namespace: app}
spec: {clusterIP: 10.96.10.21, clusterIPs: [10.96.10.21], selector: {app: nobody}, ports: [{name: http, port: 80, targetPort: 18080}]}
`)
		w.refused(t, w.client, at("10.96.10.21", 80), "no healthy upstream: 10.96.10.21:80")
	})
}

// TestTrafficDistribution: endpoints of the client's own node come first, or alone.
func TestTrafficDistribution(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		for name, field := range map[string]string{"local": "internalTrafficPolicy: Local", "near": "trafficDistribution: PreferSameNode"} {
			t.Run(name, func(t *testing.T) {
				w.put(t, "Service", "app", name, `apiVersion: v1
kind: Service
metadata: {name: `+name+`, namespace: app}
spec: {clusterIP: `+localVIP+`, clusterIPs: [`+localVIP+`], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 18080}], `+field+`}
`)
				reaches(t, w.client, at(localVIP, 80), "app/second")
				for range 20 {
					if r, err := call(w.client, at(localVIP, 80)); err != nil || r.who != "app/second" {
						t.Fatalf("%v, %v: not the endpoint of the node", r, err)
					}
				}
				reaches(t, w.server, at(localVIP, 80), "app/server")
			})
		}
	})
}

// strictPolicy is what Istio makes of strict mTLS.
const strictPolicy = rootNamespace + "/istio_converted_static_strict"

// TestPeerAuthentication, case by case.
func TestPeerAuthentication(t *testing.T) {
	const strictPorts = `  selector: {matchLabels: {app: web}}
  mtls: {mode: STRICT}
  portLevelMtls: {18080: {mode: PERMISSIVE}}
`
	both(t, func(t *testing.T, w *world) {
		peer := func(t *testing.T, namespace, name, spec string) {
			t.Helper()
			w.put(t, "PeerAuthentication", namespace, name, fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: %s, namespace: %s}\nspec:\n%s", name, namespace, spec))
		}
		meshOK := func(t *testing.T) {
			t.Helper()
			for _, port := range ports {
				reaches(t, w.client, on(w.server, port), "app/server")
			}
			reaches(t, w.outside, on(w.outsideServer, 18080), "plain/server")
		}
		t.Run("permissive", func(t *testing.T) {
			peer(t, "app", "p", "  mtls: {mode: PERMISSIVE}\n")
			meshOK(t)
			reaches(t, w.outside, on(w.server, 18080), "app/server")
		})
		t.Run("strict", func(t *testing.T) {
			peer(t, "app", "p", "  mtls: {mode: STRICT}\n")
			for _, port := range ports {
				w.refused(t, w.outside, on(w.server, port), "explicitly denied by: "+strictPolicy)
			}
			meshOK(t)
		})
		t.Run("strict but for a port", func(t *testing.T) {
			peer(t, "app", "p", strictPorts)
			w.refused(t, w.outside, on(w.server, 19090), "explicitly denied by: app/converted_peer_authentication_p")
			reaches(t, w.outside, on(w.server, 18080), "app/server")
			meshOK(t)
		})
		t.Run("mesh strict, workload permissive on a port", func(t *testing.T) {
			peer(t, rootNamespace, "mesh", "  mtls: {mode: STRICT}\n")
			peer(t, "app", "p", "  selector: {matchLabels: {app: web}}\n  portLevelMtls: {18080: {mode: PERMISSIVE}}\n")
			w.refused(t, w.outside, on(w.server, 19090), "explicitly denied by: app/converted_peer_authentication_p")
			reaches(t, w.outside, on(w.server, 18080), "app/server")
			meshOK(t)
		})
		t.Run("mesh permissive, workload strict on a port", func(t *testing.T) {
			peer(t, rootNamespace, "mesh", "  mtls: {mode: PERMISSIVE}\n")
			peer(t, "app", "p", "  selector: {matchLabels: {app: web}}\n  portLevelMtls: {18080: {mode: STRICT}}\n")
			w.refused(t, w.outside, on(w.server, 18080), "explicitly denied by: app/converted_peer_authentication_p")
			reaches(t, w.outside, on(w.server, 19090), "app/server")
			meshOK(t)
		})
		for name, c := range peersUnsent {
			t.Run(name, func(t *testing.T) {
				peer(t, rootNamespace, "mesh", c.mesh)
				if c.namespace != "" {
					peer(t, "app", "namespace", c.namespace)
				}
				peer(t, "app", "p", "  selector: {matchLabels: {app: web}}\n"+c.workload)
				for _, port := range ports {
					switch {
					case w.name == "istiod":
						w.refused(t, w.outside, on(w.server, port), "policy not known yet, so mTLS is strict: app/converted_peer_authentication_p")
					case port == c.strict:
						w.refused(t, w.outside, on(w.server, port), "explicitly denied by: app/converted_peer_authentication_p")
					default:
						reaches(t, w.outside, on(w.server, port), "app/server")
					}
				}
				meshOK(t)
			})
		}
		t.Run("taken back", func(t *testing.T) {
			for _, port := range ports {
				reaches(t, w.outside, on(w.server, port), "app/server")
			}
		})
	})
}

// peersUnsent are PeerAuthentications of which istiod names a policy that it does not
// make. Nobody with an identity must be kept out for that, and nobody let in without one.
var peersUnsent = map[string]struct {
	mesh, namespace, workload string
	strict                    int // the one port that is meant to be
}{
	"mesh strict, workload permissive and strict on a port": {
		mesh: "  mtls: {mode: STRICT}\n", workload: "  mtls: {mode: PERMISSIVE}\n  portLevelMtls: {19090: {mode: STRICT}}\n", strict: 19090},
	"mesh strict, namespace unset, workload permissive on a port": {
		mesh: "  mtls: {mode: STRICT}\n", namespace: "  mtls: {mode: UNSET}\n",
		workload: "  portLevelMtls: {18080: {mode: PERMISSIVE}}\n", strict: 19090},
	"namespace strict by an empty selector, workload permissive on a port": {
		mesh: "  mtls: {mode: PERMISSIVE}\n", namespace: "  selector: {}\n  mtls: {mode: STRICT}\n",
		workload: "  portLevelMtls: {18080: {mode: PERMISSIVE}}\n", strict: 19090},
}

// TestAuthorizationL4: policies by everything that layer 4 knows, on the one workload
// that they select.
func TestAuthorizationL4(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		for _, c := range []struct {
			name, spec string
			allowed    map[*onehost.Pod][]int // who may reach which ports of server; the others may not
		}{
			{"allow a principal", `
  selector: {matchLabels: {version: v1}}
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/app/sa/client"]}}]}]
`, map[*onehost.Pod][]int{w.client: ports}},
			{"allow a service account", `
  selector: {matchLabels: {version: v1}}
  rules: [{from: [{source: {serviceAccounts: ["app/client"]}}]}]
`, map[*onehost.Pod][]int{w.client: ports}},
			{"allow a namespace on a port", `
  selector: {matchLabels: {version: v1}}
  rules: [{from: [{source: {namespaces: ["app"]}}], to: [{operation: {ports: ["18080"]}}]}]
`, map[*onehost.Pod][]int{w.client: {18080}, w.other: {18080}}},
			{"deny an address", `
  selector: {matchLabels: {version: v1}}
  action: DENY
  rules: [{from: [{source: {ipBlocks: ["OTHER"]}}]}]
`, map[*onehost.Pod][]int{w.client: ports, w.outside: ports}},
			{"deny all but a principal on a port", `
  selector: {matchLabels: {version: v1}}
  action: DENY
  rules: [{from: [{source: {notPrincipals: ["cluster.local/ns/app/sa/other"]}}], to: [{operation: {ports: ["19090"]}}]}]
`, map[*onehost.Pod][]int{w.client: {18080}, w.other: ports, w.outside: {18080}}},
			{"deny by condition", `
  selector: {matchLabels: {version: v1}}
  action: DENY
  rules: [{when: [{key: source.namespace, values: ["app"]}, {key: destination.port, values: ["18080"]}]}]
`, map[*onehost.Pod][]int{w.client: {19090}, w.other: {19090}, w.outside: ports}},
			{"deny a prefix and a suffix", `
  selector: {matchLabels: {version: v1}}
  action: DENY
  rules: [{from: [{source: {principals: ["*/sa/other"]}}, {source: {principals: ["cluster.local/ns/app/sa/cl*"]}}]}]
`, map[*onehost.Pod][]int{w.outside: ports}},
			{"deny addresses by condition", `
  selector: {matchLabels: {version: v1}}
  action: DENY
  rules: [{when: [{key: source.ip, values: ["OTHER"]}, {key: destination.ip, values: ["SERVER"]}]}]
`, map[*onehost.Pod][]int{w.client: ports, w.outside: ports}},
			{"allow all but an address and a port", `
  selector: {matchLabels: {version: v1}}
  rules: [{from: [{source: {notIpBlocks: ["OTHER"]}}], to: [{operation: {notPorts: ["19090"]}}]}]
`, map[*onehost.Pod][]int{w.client: {18080}, w.outside: {18080}}},
			{"deny all but a namespace", `
  selector: {matchLabels: {version: v1}}
  action: DENY
  rules: [{from: [{source: {notNamespaces: ["app"]}}]}]
`, map[*onehost.Pod][]int{w.client: ports, w.other: ports}},
			{"allow nothing", `
  selector: {matchLabels: {version: v1}}
`, nil},
			{"allow with layer 7 alone", `
  selector: {matchLabels: {version: v1}}
  rules: [{to: [{operation: {methods: ["GET"]}}]}]
`, nil},
			{"a whole namespace", `
  rules: [{from: [{source: {principals: ["cluster.local/ns/app/sa/client"]}}]}]
`, map[*onehost.Pod][]int{w.client: ports}},
		} {
			t.Run(c.name, func(t *testing.T) {
				spec := strings.NewReplacer("OTHER", w.other.IP4().String(), "SERVER", w.server.IP4().String()).Replace(c.spec)
				w.put(t, "AuthorizationPolicy", "app", "p", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: app}\nspec:"+spec)
				because := "explicitly denied by: app/p"
				if !strings.Contains(spec, "DENY") {
					because = "allow policies exist, but none allowed"
				}
				sources := []*onehost.Pod{w.client, w.other, w.outside}
				for _, from := range sources { // first, so that the policy is in force for what is allowed
					for _, port := range ports {
						if !slices.Contains(c.allowed[from], port) {
							w.refused(t, from, on(w.server, port), because)
						}
					}
				}
				for _, from := range sources {
					for _, port := range c.allowed[from] {
						reaches(t, from, on(w.server, port), "app/server")
					}
				}
				reaches(t, w.client, on(w.outsideServer, 18080), "plain/server")
			})
		}
		reaches(t, w.outside, on(w.server, 18080), "app/server")
	})
}

// TestOutboundPolicyAllowAny: what is not in the cluster is reached as if there were no
// mesh.
func TestOutboundPolicyAllowAny(t *testing.T) {
	both(t, func(t *testing.T, w *world) { reaches(t, w.client, w.elsewhereAddr(), "elsewhere") })
}

// TestServiceEntryInlinedWorkloadEntry: addresses, of both families, and ports that are
// mapped.
func TestServiceEntryInlinedWorkloadEntry(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		for name, to := range map[string]*onehost.Pod{"captured": w.server, "outside": w.outsideServer} {
			t.Run(name, func(t *testing.T) {
				w.put(t, "ServiceEntry", "app", "inlined", fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: inlined, namespace: app}
spec:
  hosts: [inlined.example]
  addresses: [240.240.240.250, "2001:2::f0f0:250"]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 1}, {number: 81, name: tcp, protocol: TCP}]
  endpoints: [{address: %s, ports: {http: 18080, tcp: 19090}}, {address: "%s", ports: {http: 18080, tcp: 19090}}]
`, to.IP4(), to.IP6()))
				want := to.Spec.Namespace + "/" + to.Spec.Name
				for _, vip := range []string{"240.240.240.250", "2001:2::f0f0:250"} {
					reaches(t, w.client, at(vip, 80), want)
					reaches(t, w.client, at(vip, 81), want)
				}
			})
		}
	})
}

// TestServiceEntrySelects: a ServiceEntry's endpoints are pods, in the mesh and out of it,
// and WorkloadEntries.
func TestServiceEntrySelects(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		entry := func(namespace, app string) string {
			return `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: selects, namespace: ` + namespace + `}
spec:
  hosts: [selects.example]
  addresses: [240.240.240.251, "2001:2::f0f0:251"]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 18080}]
  workloadSelector: {labels: {app: ` + app + `}}
`
		}
		vips := []string{"240.240.240.251", "2001:2::f0f0:251"}
		t.Run("pods", func(t *testing.T) {
			w.put(t, "ServiceEntry", "app", "selects", entry("app", "web"))
			for _, vip := range vips {
				spread(t, w.client, at(vip, 80), "app/server", "app/second")
			}
		})
		t.Run("a pod outside", func(t *testing.T) {
			w.put(t, "ServiceEntry", "plain", "selects", entry("plain", "outside-server"))
			for _, vip := range vips {
				reaches(t, w.client, at(vip, 80), "plain/server")
			}
		})
		t.Run("a workload entry", func(t *testing.T) {
			w.put(t, "WorkloadEntry", "app", "vm", `apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: app, labels: {app: vm}}
spec: {address: `+w.outsideServer.IP4().String()+`, labels: {app: vm}, serviceAccount: vm}
`)
			w.put(t, "ServiceEntry", "app", "selects", entry("app", "vm"))
			reaches(t, w.client, at(vips[0], 80), "plain/server")
		})
	})
}

// TestTwoServicesOfOneAddress: the client's own namespace comes first.
func TestTwoServicesOfOneAddress(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		for namespace, app := range map[string]string{"app": "web", "plain": "outside-server"} {
			w.put(t, "ServiceEntry", namespace, "shared", `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shared, namespace: `+namespace+`}
spec:
  hosts: [shared-`+namespace+`.example]
  addresses: [240.240.240.252]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 18080}]
  workloadSelector: {labels: {app: `+app+`}}
`)
		}
		spread(t, w.client, at("240.240.240.252", 80), "app/server", "app/second")
	})
}

// TestUnhealthyEndpoint: a pod that is not ready gets no connections of a service, and
// those that are made to it alone.
func TestUnhealthyEndpoint(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		p, err := w.Nodes[0].AddPod(t.Context(), onehost.PodSpec{Namespace: "app", Name: "sick", ServiceAccount: "sick", Labels: map[string]string{"app": "sick"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Delete(context.Background()) })
		s, err := p.Serve(18080, answer("app/sick"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		w.put(t, "Service", "app", "sick", `apiVersion: v1
kind: Service
metadata: {name: sick, namespace: app}
spec: {clusterIP: 10.96.10.22, clusterIPs: [10.96.10.22], selector: {app: sick}, ports: [{name: http, port: 80, targetPort: 18080}]}
`)
		reaches(t, w.client, at("10.96.10.22", 80), "app/sick")
		if err := p.SetReady(false); err != nil {
			t.Fatal(err)
		}
		w.refused(t, w.client, at("10.96.10.22", 80), "no healthy upstream")
		reaches(t, w.client, on(p, 18080), "app/sick")
		if err := p.SetReady(true); err != nil {
			t.Fatal(err)
		}
		reaches(t, w.client, at("10.96.10.22", 80), "app/sick")
	})
}

// TestRestart: endpoints come and go, and nobody who is left is missed.
func TestRestart(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		spec := onehost.PodSpec{Namespace: "app", Name: "rolling", ServiceAccount: "rolling", Labels: map[string]string{"app": "rolling"}}
		w.put(t, "Service", "app", "rolling", `apiVersion: v1
kind: Service
metadata: {name: rolling, namespace: app}
spec: {clusterIP: 10.96.10.23, clusterIPs: [10.96.10.23], selector: {app: rolling}, ports: [{name: http, port: 80, targetPort: 18080}]}
`)
		for i := range 3 {
			p, err := w.Nodes[i%2].AddPod(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			s, err := p.Serve(18080, answer(fmt.Sprintf("app/rolling-%d", i)))
			if err != nil {
				t.Fatal(err)
			}
			reaches(t, w.client, at("10.96.10.23", 80), fmt.Sprintf("app/rolling-%d", i))
			_ = s.Close()
			w.end(t, p)
			w.refused(t, w.client, at("10.96.10.23", 80), "no healthy upstream")
		}
	})
}

// TestL4Telemetry: the destination reports who called whom.
func TestL4Telemetry(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		spread(t, w.client, at(webVIP, 80), "app/server", "app/second")
		want := []string{
			`reporter="destination"`, `connection_security_policy="mutual_tls"`, `source_principal="spiffe://cluster.local/ns/app/sa/client"`,
			`destination_principal="spiffe://cluster.local/ns/app/sa/server"`, `destination_service="web.app.svc.cluster.local"`,
			`destination_service_name="web"`, `destination_service_namespace="app"`, `destination_workload="server"`,
			`destination_canonical_service="web"`, `destination_canonical_revision="v1"`, `destination_version="v1"`, `source_workload="client"`,
			`source_workload_namespace="app"`, `source_canonical_service="client"`,
		}
		eventually(t, "the metric is there", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			text, err := w.Nodes[1].Metrics(ctx)
			if err != nil {
				return err
			}
			var best string
			for line := range strings.Lines(text) {
				if !strings.HasPrefix(line, "istio_tcp_connections_opened_total{") || !strings.Contains(line, want[2]) {
					continue
				}
				best = line
				missing := ""
				for _, label := range want {
					if !strings.Contains(line, label) {
						missing += " " + label
					}
				}
				if missing == "" {
					return nil
				}
				best = "without" + missing + ": " + line
			}
			return errors.New(best)
		})
	})
}

// TestOnDemand: proxies that ask for what a connection needs carry the same traffic.
func TestOnDemand(t *testing.T) {
	for _, name := range []string{"warren", "istiod"} {
		t.Run(name, func(t *testing.T) {
			w := &world{name: name}
			alone(t, w, []string{"XDS_ON_DEMAND=true"})
			spread(t, w.client, at(webVIP, 80), "app/server", "app/second")
			reaches(t, w.client, on(w.outsideServer, 18080), "plain/server")
			reaches(t, w.client, w.elsewhereAddr(), "elsewhere")
			logs := w.AccessLogs()
			reaches(t, w.client, on(w.server, 18080), "app/server")
			lines, err := logs.Wait(t.Context(), w.client.IPs, w.server.IPs, []string{"outbound", "inbound"})
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range lines {
				if l.DstIdentity != "spiffe://cluster.local/ns/app/sa/server" {
					t.Errorf("%s: to %q", l.Direction, l.DstIdentity)
				}
			}
			late, err := w.Nodes[1].AddPod(t.Context(), onehost.PodSpec{Namespace: "app", Name: "late", ServiceAccount: "late", Labels: map[string]string{"app": "web"}})
			if err != nil {
				t.Fatal(err)
			}
			s, err := late.Serve(18080, answer("app/late"))
			if err != nil {
				t.Fatal(err)
			}
			w.apps = append(w.apps, s)
			spread(t, w.client, at(webVIP, 80), "app/server", "app/second", "app/late")

			// A service all of whose endpoints have gone is asked for anew, at once.
			w.put(t, "Service", "app", "renewed", `apiVersion: v1
kind: Service
metadata: {name: renewed, namespace: app}
spec: {clusterIP: 10.96.10.24, clusterIPs: [10.96.10.24], selector: {app: renewed}, ports: [{name: http, port: 80, targetPort: 18080}]}
`)
			for i := range 2 {
				name := fmt.Sprintf("renewed-%d", i)
				p, err := w.Nodes[1].AddPod(t.Context(), onehost.PodSpec{Namespace: "app", Name: name, ServiceAccount: "renewed", Labels: map[string]string{"app": "renewed"}})
				if err != nil {
					t.Fatal(err)
				}
				s, err := p.Serve(18080, answer("app/"+name))
				if err != nil {
					t.Fatal(err)
				}
				reaches(t, w.client, at("10.96.10.24", 80), "app/"+name)
				_ = s.Close()
				w.end(t, p)
				w.refused(t, w.client, at("10.96.10.24", 80), "no healthy upstream")
			}

			// Names are given back for that, and the node's own workloads stay known.
			rollWaypoint(t, w)
		})
	}
}
