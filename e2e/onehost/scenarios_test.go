package onehost_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// putService puts a Service of namespace app with one port, 80 to 8080. spec and
// meta are further lines of it.
func putService(t *testing.T, m *onehost.Mesh, name, vip, meta, spec string) netip.AddrPort {
	t.Helper()
	put(t, m, "Service", "app", name, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: app%s}
spec:
  clusterIP: %[3]q
  clusterIPs: [%[3]q]
  ports: [{name: tcp, port: 80, targetPort: 8080}]
%[4]s`, name, meta, vip, spec))
	if vip == "None" {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.MustParseAddr(vip), 80)
}

// named says who it is.
func named(t *testing.T, p *onehost.Pod, port int) {
	t.Helper()
	serve(t, p, port, func(c *net.TCPConn) { io.WriteString(c, p.Spec.Name) })
}

// ask connects and returns who answered.
func ask(p *onehost.Pod, dst netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := p.Dial(ctx, dst)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	b, err := io.ReadAll(c)
	if err == nil && len(b) == 0 {
		err = errors.New("no answer")
	}
	return string(b), err
}

// onlyFrom waits until each of these pods, and nobody else, answers at dst; no
// pods: until nobody does.
func onlyFrom(t *testing.T, from *onehost.Pod, dst netip.AddrPort, pods ...*onehost.Pod) {
	t.Helper()
	var want []string
	for _, p := range pods {
		want = append(want, p.Spec.Name)
	}
	slices.Sort(want)
	eventually(t, 30*time.Second, fmt.Sprintf("%s answers who is to", dst), func() error {
		seen := map[string]bool{}
		for range 16 {
			name, err := ask(from, dst)
			switch {
			case err != nil && len(want) == 0:
				continue
			case err != nil:
				return err
			}
			seen[name] = true
		}
		var got []string
		for name := range seen {
			got = append(got, name)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("%v answered, want %v", got, want)
		}
		return nil
	})
}

// TestServiceKinds: who is reached by services of each kind that Kubernetes has.
func TestServiceKinds(t *testing.T) {
	m := sharedMesh(t)
	labels := map[string]string{"app": "kinds"}
	client := addPod(t, m.Nodes[0], "app", "client", nil)
	near, far := addPod(t, m.Nodes[0], "app", "near", labels), addPod(t, m.Nodes[1], "app", "far", labels)
	third := addPod(t, m.Nodes[1], "app", "third", map[string]string{"app": "other"})
	for _, p := range []*onehost.Pod{near, far, third} {
		named(t, p, 8080)
	}
	waitPods(t, m)
	const selector = "  selector: {app: kinds}\n"
	t.Run("all endpoints", func(t *testing.T) {
		onlyFrom(t, client, putService(t, m, "all", "10.96.0.40", "", selector), near, far)
	})
	t.Run("without endpoints", func(t *testing.T) {
		vip := putService(t, m, "empty", "10.96.0.41", "", "  selector: {app: nobody}\n")
		refusedBecause(t, m, client, vip, "no healthy upstream: 10.96.0.41:80")
	})
	t.Run("a port that it lacks", func(t *testing.T) {
		vip := putService(t, m, "portless", "10.96.0.42", "", selector)
		refusedBecause(t, m, client, netip.AddrPortFrom(vip.Addr(), 81), "no healthy upstream: 10.96.0.42:81")
		onlyFrom(t, client, vip, near, far)
	})
	t.Run("headless", func(t *testing.T) {
		putService(t, m, "headless", "None", "", "  selector: {app: other}\n")
		eventually(t, 30*time.Second, "the destination knows by which service it was meant", func() error {
			logs := m.AccessLogs()
			if name, err := ask(client, netip.AddrPortFrom(third.IP4(), 8080)); err != nil || name != third.Spec.Name {
				return fmt.Errorf("%s answered: %w", name, err)
			}
			lines, err := logs.Wait(testContext(t), client.IPs, third.IPs, []string{"inbound"})
			if err != nil {
				return err
			}
			if got := lines[0].DstService; got != "headless.app.svc.cluster.local" {
				return fmt.Errorf("service %q", got)
			}
			return nil
		})
	})
	t.Run("internal traffic stays on the node", func(t *testing.T) {
		vip := putService(t, m, "local", "10.96.0.43", "", selector+"  internalTrafficPolicy: Local\n")
		onlyFrom(t, client, vip, near)
		onlyFrom(t, third, vip, far)
		vip = putService(t, m, "local-far", "10.96.0.44", "", "  selector: {app: other}\n  internalTrafficPolicy: Local\n")
		onlyFrom(t, third, vip, third)
		onlyFrom(t, client, vip) // nobody
	})
	t.Run("the same node is preferred, not required", func(t *testing.T) {
		vip := putService(t, m, "preferred", "10.96.0.45", "", selector+"  trafficDistribution: PreferSameNode\n")
		onlyFrom(t, client, vip, near)
		if err := near.SetReady(false); err != nil {
			t.Fatal(err)
		}
		onlyFrom(t, client, vip, far)
		if err := near.SetReady(true); err != nil {
			t.Fatal(err)
		}
		onlyFrom(t, client, vip, near)
	})
	t.Run("pods that are not ready", func(t *testing.T) {
		unready := addPod(t, m.Nodes[1], "app", "unready", map[string]string{"app": "unready"})
		if err := unready.SetReady(false); err != nil {
			t.Fatal(err)
		}
		named(t, unready, 8080)
		waitPods(t, m)
		const selector = "  selector: {app: unready}\n"
		onlyFrom(t, client, putService(t, m, "published", "10.96.0.46", "", selector+"  publishNotReadyAddresses: true\n"), unready)
		vip := putService(t, m, "unpublished", "10.96.0.47", "", selector)
		onlyFrom(t, client, vip)
		if err := unready.SetReady(true); err != nil {
			t.Fatal(err)
		}
		onlyFrom(t, client, vip, unready)
	})
	t.Run("a waypoint that does not exist", func(t *testing.T) {
		vip := putService(t, m, "bogus", "10.96.0.48", ", labels: {istio.io/use-waypoint: nobody}", selector)
		onlyFrom(t, client, vip, near, far)
	})
}

// refusedBecause waits until a connection is refused and the client's proxy gives
// this reason, which it then always does.
func refusedBecause(t *testing.T, m *onehost.Mesh, from *onehost.Pod, dst netip.AddrPort, reason string) {
	t.Helper()
	once := func() error {
		logs := m.AccessLogs()
		if name, err := ask(from, dst); err == nil {
			return fmt.Errorf("%s answered", name)
		}
		lines, err := logs.Wait(testContext(t), from.IPs, []netip.Addr{dst.Addr()}, []string{"outbound"})
		if err != nil {
			return err
		}
		if !strings.Contains(lines[0].Err, reason) {
			return fmt.Errorf("error %q, want %q", lines[0].Err, reason)
		}
		return nil
	}
	eventually(t, 30*time.Second, "the connection is refused", once)
	for range 3 { // and from then on every one is
		if err := once(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestServiceEntries: what is outside of Kubernetes, or named as if it were.
func TestServiceEntries(t *testing.T) {
	m := sharedMesh(t)
	client := addPod(t, m.Nodes[0], "app", "client", nil)
	outside := addPod(t, m.Nodes[1], "plain", "outside", nil)
	inside := addPod(t, m.Nodes[1], "app", "inside", map[string]string{"app": "inside"})
	named(t, outside, 18080)
	named(t, inside, 18080)
	waitPods(t, m)
	entry := func(name, spec string) {
		t.Helper()
		put(t, m, "ServiceEntry", "app", name, fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s, namespace: app}
spec:
  hosts: [%[1]s.example.com]
  resolution: STATIC
%s`, name, spec))
	}
	at := netip.MustParseAddrPort
	t.Run("static, with ports of its own", func(t *testing.T) {
		entry("static", fmt.Sprintf(`
  addresses: [240.1.1.1, "2001:db8:1::1"]
  location: MESH_EXTERNAL
  ports: [{number: 80, name: tcp, protocol: TCP}]
  endpoints: [{address: %s, ports: {tcp: 18080}}, {address: "%s", ports: {tcp: 18080}}]
`, outside.IP4(), outside.IP6()))
		onlyFrom(t, client, at("240.1.1.1:80"), outside)
		onlyFrom(t, client, at("[2001:db8:1::1]:80"), outside)
		refusedBecause(t, m, client, at("240.1.1.1:81"), "no healthy upstream: 240.1.1.1:81")
	})
	t.Run("a range of addresses", func(t *testing.T) {
		entry("range", fmt.Sprintf(`
  addresses: [240.1.2.0/24]
  ports: [{number: 80, name: tcp, protocol: TCP, targetPort: 18080}]
  endpoints: [{address: %s}]
`, outside.IP4()))
		onlyFrom(t, client, at("240.1.2.7:80"), outside)
	})
	t.Run("of pods by label", func(t *testing.T) {
		entry("bylabel", `
  addresses: [240.1.1.3]
  location: MESH_INTERNAL
  ports: [{number: 80, name: tcp, protocol: TCP, targetPort: 18080}]
  workloadSelector: {labels: {app: inside}}
`)
		onlyFrom(t, client, at("240.1.1.3:80"), inside)
		logs := m.AccessLogs()
		if _, err := ask(client, at("240.1.1.3:80")); err != nil {
			t.Fatal(err)
		}
		lines, err := logs.Wait(testContext(t), client.IPs, inside.IPs, []string{"outbound", "inbound"})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			if l.DstIdentity != "spiffe://cluster.local/ns/app/sa/inside" || l.DstService != "bylabel.example.com" {
				t.Errorf("%s: identity %q, service %q", l.Direction, l.DstIdentity, l.DstService)
			}
		}
	})
	t.Run("of WorkloadEntries by label", func(t *testing.T) {
		put(t, m, "WorkloadEntry", "app", "vm", fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: app, labels: {app: vm}}
spec: {address: %s, ports: {tcp: 18080}, labels: {app: vm}, serviceAccount: vm}
`, outside.IP4()))
		entry("ofentries", `
  addresses: [240.1.1.4]
  location: MESH_INTERNAL
  ports: [{number: 80, name: tcp, protocol: TCP}]
  workloadSelector: {labels: {app: vm}}
`)
		onlyFrom(t, client, at("240.1.1.4:80"), outside)
	})
	t.Run("weights", func(t *testing.T) {
		entry("weighted", fmt.Sprintf(`
  addresses: [240.1.1.5]
  ports: [{number: 80, name: tcp, protocol: TCP, targetPort: 18080}]
  endpoints: [{address: %s, weight: 1}, {address: %s, weight: 4000000000}]
`, outside.IP4(), inside.IP4()))
		onlyFrom(t, client, at("240.1.1.5:80"), inside)
	})
}

// TestPolicyFields is one policy a case, with the ports of the server that each
// client is then denied.
func TestPolicyFields(t *testing.T) {
	m := sharedMesh(t)
	alice, bob := addPod(t, m.Nodes[0], "app", "alice", nil), addPod(t, m.Nodes[0], "app", "bob", nil)
	old := addPod(t, m.Nodes[0], "plain", "old", nil)
	server := addPod(t, m.Nodes[1], "app", "server", map[string]string{"app": "fields"})
	echo(t, server, 7)
	echo(t, server, 8)
	waitPods(t, m)
	type denied = map[*onehost.Pod][]int
	both, addresses := []int{7, 8}, strings.NewReplacer(
		"ALICE", alice.IP4().String(), "BOB", bob.IP4().String(), "OLD", old.IP4().String(), "SERVER", server.IP4().String())
	for _, tc := range []struct {
		name, spec string
		denied     denied
	}{
		{"deny not principals", "action: DENY\nrules: [{from: [{source: {notPrincipals: [cluster.local/ns/app/sa/alice]}}]}]", denied{bob: both, old: both}},
		{"deny every principal", "action: DENY\nrules: [{from: [{source: {principals: ['*']}}]}]", denied{alice: both, bob: both}},
		{"deny a principal by prefix and by suffix", "action: DENY\nrules: [{from: [{source: {principals: ['cluster.local/ns/app/sa/al*', '*/sa/nobody']}}]}]", denied{alice: both}},
		{"deny a principal by suffix", "action: DENY\nrules: [{from: [{source: {principals: ['*/sa/bob']}}]}]", denied{bob: both}},
		{"deny a principal without trust domain", "action: DENY\nrules: [{from: [{source: {principals: [ns/app/sa/alice]}}]}]", nil},
		{"deny service accounts", "action: DENY\nrules: [{from: [{source: {serviceAccounts: [alice, app/nobody]}}]}]", denied{alice: both}},
		{"deny not service accounts", "action: DENY\nrules: [{from: [{source: {notServiceAccounts: [app/alice]}}]}]", denied{bob: both, old: both}},
		{"deny a namespace", "action: DENY\nrules: [{from: [{source: {namespaces: [app]}}]}]", denied{alice: both, bob: both}},
		{"deny namespaces by prefix", "action: DENY\nrules: [{from: [{source: {namespaces: ['ap*']}}]}]", denied{alice: both, bob: both}},
		{"deny an address block", "action: DENY\nrules: [{from: [{source: {ipBlocks: [ALICE]}}]}]", denied{alice: both}},
		{"deny other address blocks", "action: DENY\nrules: [{from: [{source: {notIpBlocks: [ALICE, BOB/32]}}]}]", denied{old: both}},
		{"deny all of IPv4", "action: DENY\nrules: [{from: [{source: {ipBlocks: [0.0.0.0/0]}}]}]", denied{alice: both, bob: both, old: both}},
		{"deny all of IPv6", "action: DENY\nrules: [{from: [{source: {ipBlocks: ['::/0']}}]}]", nil},
		{"deny other ports", "action: DENY\nrules: [{to: [{operation: {notPorts: ['7']}}]}]", denied{alice: {8}, bob: {8}, old: {8}}},
		{"deny when port and principal", "action: DENY\nrules: [{when: [{key: destination.port, values: ['8']}, {key: source.principal, values: [cluster.local/ns/app/sa/alice]}]}]", denied{alice: {8}}},
		{"deny when not address", "action: DENY\nrules: [{when: [{key: source.ip, notValues: [OLD]}]}]", denied{alice: both, bob: both}},
		{"deny when destination", "action: DENY\nrules: [{when: [{key: destination.ip, values: [SERVER]}, {key: source.namespace, values: [app]}]}]", denied{alice: both, bob: both}},
		{"deny when destination is another", "action: DENY\nrules: [{when: [{key: destination.ip, values: [ALICE]}]}]", nil},
		{"either rule", "action: DENY\nrules: [{from: [{source: {principals: ['*/sa/alice']}}], to: [{operation: {ports: ['7']}}]}, {from: [{source: {principals: ['*/sa/bob']}}], to: [{operation: {ports: ['8']}}]}]", denied{alice: {7}, bob: {8}}},
		{"allow by either source", "rules: [{from: [{source: {principals: ['*/sa/alice']}}, {source: {ipBlocks: [OLD]}}]}]", denied{bob: both}},
		{"allow a principal but not from there", "rules: [{from: [{source: {principals: ['*'], notIpBlocks: [BOB]}}]}]", denied{bob: both, old: both}},
		{"allow all", "rules: [{}]", nil},
		{"allow nothing", "{}", denied{alice: both, bob: both, old: both}},
		{"allow what is of layer 7 alone: nothing", "rules: [{to: [{operation: {methods: [GET]}}]}]", denied{alice: both, bob: both, old: both}},
		{"a selector of others", "selector: {matchLabels: {app: nobody}}\naction: DENY\nrules: [{}]", nil},
		{"a selector", "selector: {matchLabels: {app: fields}}\naction: DENY\nrules: [{from: [{source: {principals: ['*/sa/alice']}}]}]", denied{alice: both}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := "  " + strings.ReplaceAll(addresses.Replace(tc.spec), "\n", "\n  ") + "\n"
			policy(t, m, strings.ToLower(strings.NewReplacer(" ", "-", ":", "").Replace(tc.name)), spec)
			check := func() error {
				for _, from := range []*onehost.Pod{alice, bob, old} {
					for _, port := range both {
						err := roundTrip(from, netip.AddrPortFrom(server.IP4(), uint16(port)), "hello")
						if want := slices.Contains(tc.denied[from], port); want != (err != nil) {
							return fmt.Errorf("%s → port %d: %v, want denied %v", from.Spec.ServiceAccount, port, err, want)
						}
					}
				}
				return nil
			}
			if strings.HasPrefix(tc.spec, "selector") { // the workload may follow the policy
				eventually(t, 30*time.Second, "the policy is attached", check)
			} else if err := check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestMeshWidePolicy is one of the root namespace: it is everybody's.
func TestMeshWidePolicy(t *testing.T) {
	m := sharedMesh(t)
	alice, bob := addPod(t, m.Nodes[0], "app", "alice", nil), addPod(t, m.Nodes[0], "app", "bob", nil)
	server, unmeshed := addPod(t, m.Nodes[1], "app", "server", nil), addPod(t, m.Nodes[1], "plain", "unmeshed", nil)
	dst, other := echo(t, server, 7), echo(t, unmeshed, 7)
	waitPods(t, m)
	if err := m.PutPolicy("istio-system", "mesh-wide", "  action: DENY\n  rules: [{from: [{source: {principals: ['*/sa/alice']}}]}]\n"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(m.Remove("AuthorizationPolicy", "istio-system", "mesh-wide"), m.WaitNoPolicy(testContext(t), "istio-system/mesh-wide")); err != nil {
			t.Error(err)
		}
	})
	if err := m.WaitPolicy(testContext(t), "istio-system/mesh-wide"); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, alice, dst)
	mustEcho(t, bob, dst)
	mustEcho(t, alice, other) // a pod outside the mesh has no policies
}

// TestPeerAuthenticationPorts: strict and permissive by port, by workload and by
// namespace, object by object: what is seen of one is not what was there before it.
// Clients in the mesh are never denied.
func TestPeerAuthenticationPorts(t *testing.T) {
	m := sharedMesh(t)
	client, old := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[0], "plain", "old", nil)
	server := addPod(t, m.Nodes[1], "app", "server", map[string]string{"app": "ports"})
	echo(t, server, 7)
	echo(t, server, 8)
	waitPods(t, m)
	denied := func(t *testing.T, ports ...int) { // to plaintext, from the first time on
		t.Helper()
		once := func() error {
			for _, port := range []int{7, 8} {
				err := roundTrip(old, netip.AddrPortFrom(server.IP4(), uint16(port)), "hello")
				if want := slices.Contains(ports, port); want != (err != nil) {
					return fmt.Errorf("port %d: %v, want denied %v", port, err, want)
				}
			}
			return nil
		}
		eventually(t, 30*time.Second, "plaintext is denied where it is to be", once)
		for n := range 6 {
			if err := once(); err != nil {
				t.Errorf("round %d after that: %v", n+1, err)
			}
		}
	}
	const (
		selector   = "  selector: {matchLabels: {app: ports}}\n"
		strict     = "  mtls: {mode: STRICT}\n"
		permissive = "  mtls: {mode: PERMISSIVE}\n"
		mesh       = "istio-system/default"
		namespace  = "app/default"
		workload   = "app/a"
	)
	type step struct {
		key, spec string
		denied    []int
	}
	both := []int{7, 8}
	for name, steps := range map[string][]step{
		"permissive":                            {{workload, selector + strict, both}, {workload, selector + permissive, nil}},
		"strict workload but for a port":        {{workload, selector + strict + "  portLevelMtls: {8: {mode: PERMISSIVE}}\n", []int{7}}},
		"permissive workload but for a port":    {{workload, selector + permissive + "  portLevelMtls: {8: {mode: STRICT}}\n", []int{8}}},
		"disabled for a port is permissive":     {{workload, selector + strict + "  portLevelMtls: {8: {mode: DISABLE}}\n", []int{7}}},
		"strict namespace, permissive port":     {{namespace, strict, both}, {workload, selector + "  portLevelMtls: {7: {mode: PERMISSIVE}}\n", []int{8}}},
		"strict namespace, permissive workload": {{namespace, strict, both}, {workload, selector + permissive, nil}},
		"strict mesh, permissive namespace":     {{mesh, strict, both}, {namespace, permissive, nil}},
		"strict mesh, permissive port":          {{mesh, strict, both}, {workload, selector + "  portLevelMtls: {8: {mode: PERMISSIVE}}\n", []int{7}}},
		"permissive mesh, strict port":          {{mesh, permissive, nil}, {workload, selector + "  portLevelMtls: {8: {mode: STRICT}}\n", []int{8}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() {
				for _, key := range []string{mesh, namespace, workload} {
					if in, name, _ := strings.Cut(key, "/"); slices.ContainsFunc(steps, func(s step) bool { return s.key == key }) {
						if err := m.Remove("PeerAuthentication", in, name); err != nil {
							t.Error(err)
						}
					}
				}
				denied(t)
			})
			for _, s := range steps {
				in, name, _ := strings.Cut(s.key, "/")
				if err := m.PutPeerAuthentication(in, name, s.spec); err != nil {
					t.Fatal(err)
				}
				denied(t, s.denied...)
				for _, port := range []uint16{7, 8} {
					mustEcho(t, client, netip.AddrPortFrom(server.IP4(), port))
				}
			}
		})
	}
}

// TestDryRun: a policy that is to be tried decides nothing, and is counted and
// logged as if it did.
func TestDryRun(t *testing.T) {
	m := newMesh(t, onehost.Options{Args: []string{"--dry-run-policies"}, Env: []string{"AUTHZ_POLICY_INFO_LOGGING=true"}})
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	dst := echo(t, server, 7)
	waitPods(t, m)
	put(t, m, "AuthorizationPolicy", "app", "try", `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: try, namespace: app, annotations: {istio.io/dry-run: "true"}}
spec:
  action: DENY
  rules: [{from: [{source: {principals: ["cluster.local/ns/app/sa/client"]}}]}]
`)
	if err := m.WaitPolicy(testContext(t), "app/try"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		mustEcho(t, client, dst)
	}
	text, err := m.Nodes[1].Metrics(testContext(t))
	if want := `warren_policy_dry_run_total{policy="app/try",verdict="deny"} 3`; err != nil || !strings.Contains(text, want) {
		t.Errorf("no %s in the metrics: %v", want, err)
	}
	eventually(t, 30*time.Second, "it is logged", func() error {
		log, err := os.ReadFile(m.Nodes[1].ProxyLog())
		if err == nil && !strings.Contains(string(log), "dry-run: deny policy match") {
			err = errors.New("no such line")
		}
		return err
	})
}
