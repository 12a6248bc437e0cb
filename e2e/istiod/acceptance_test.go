//go:build istiod

package istiod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/e2e/onehost"
	"github.com/warren-mesh/warren/proxy/hbone"
)

// pod adds one whose application answers, for the time of a test.
func (w *world) pod(t *testing.T, node int, spec onehost.PodSpec) *onehost.Pod {
	t.Helper()
	if spec.ServiceAccount == "" {
		spec.ServiceAccount = spec.Name
	}
	p, err := w.Nodes[node].AddPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, there := w.Nodes[node].Pods[spec.Namespace+"/"+spec.Name]; there {
			_ = p.Delete(context.Background())
		}
	})
	s, err := p.Serve(18080, answer(w.called(spec.Namespace, spec.Name)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if !w.onDemand {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := w.WaitPods(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// TestServiceEntryVisibility: what is private to a namespace is not there for another,
// and does not stand before what is public. Istiod goes by the mesh's setting (the
// namespace's label), ours by exportTo.
func TestServiceEntryVisibility(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		insider := w.pod(t, 0, onehost.PodSpec{Namespace: privateNamespace, Name: "insider"})
		entry := func(namespace, host, vip string, to *onehost.Pod, exportTo string) {
			w.put(t, "ServiceEntry", namespace, host, fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s, namespace: %s}
spec:
  hosts: [%[1]s.example]
  addresses: [%[3]s]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 18080}]
  endpoints: [{address: %[4]s}]
  exportTo: ["%[5]s"]
`, host, namespace, vip, to.IP4(), exportTo))
		}
		entry(privateNamespace, "hidden", "240.240.240.230", w.server, ".")
		reaches(t, insider, at("240.240.240.230", 80), "app/server")
		for range 2 { // it goes where there is nobody, as without a mesh, which takes seconds
			if r, err := call(w.client, at("240.240.240.230", 80)); err == nil {
				t.Fatalf("%s answered at an address that is another namespace's", r.who)
			}
		}
		entry(privateNamespace, "shadow", "240.240.240.231", w.server, ".")
		entry("plain", "shadow", "240.240.240.231", w.outsideServer, "*")
		reaches(t, w.client, at("240.240.240.231", 80), "plain/server")
		reaches(t, insider, at("240.240.240.231", 80), "app/server")
	})
}

// resolve asks for addresses as the pod's resolver would. No server is at the address
// that it asks: what answers is the proxy.
func resolve(p *onehost.Pod, name string, kind uint16) (list []netip.Addr, err error) {
	var c net.Conn
	err = p.NS.Do(func() error { c, err = net.Dial("udp", "10.99.0.254:53"); return err })
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)); err != nil {
		return nil, err
	}
	m, err := conn.ReadMsg()
	if err != nil {
		return nil, err
	}
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			ip, _ := netip.AddrFromSlice(rr.A.To4())
			list = append(list, ip)
		case *dns.AAAA:
			ip, _ := netip.AddrFromSlice(rr.AAAA)
			list = append(list, ip)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s has no address: %s", name, dns.RcodeToString[m.Rcode])
	}
	return list, nil
}

// TestServiceEntryDNSWithAutoAssign: a ServiceEntry without an address gets one in each
// family, by which its name is known through the DNS proxy and nowhere else.
func TestServiceEntryDNSWithAutoAssign(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		asks := w.pod(t, 0, onehost.PodSpec{Namespace: "app", Name: "asks", Annotations: map[string]string{"ambient.istio.io/dns-capture": "true"}})
		t.Run("there", func(t *testing.T) {
			w.put(t, "ServiceEntry", "app", "auto", fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: auto, namespace: app}
spec:
  hosts: [auto.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 18080}]
  endpoints: [{address: %s}, {address: "%s"}]
`, w.server.IP4(), w.server.IP6()))
			for kind, within := range map[uint16]string{dns.TypeA: "240.240.0.0/16", dns.TypeAAAA: "2001:2::/48"} {
				var list []netip.Addr
				eventually(t, "auto.example has an address within "+within, func() (err error) {
					list, err = resolve(asks, "auto.example", kind)
					if err == nil && !netip.MustParsePrefix(within).Contains(list[0]) {
						err = fmt.Errorf("it has %s", list)
					}
					return err
				})
				reaches(t, asks, netip.AddrPortFrom(list[0], 80), "app/server")
			}
			list, err := resolve(asks, "web", dns.TypeA) // a Service, by its short name
			if err != nil || list[0] != netip.MustParseAddr(webVIP) {
				t.Errorf("web is %v, %v", list, err)
			}
		})
		for range 2 { // nobody answers, which takes seconds
			if list, err := resolve(asks, "auto.example", dns.TypeA); err == nil {
				t.Fatalf("auto.example is %v after it was deleted", list)
			}
		}
	})
}

// connect asks a pod's proxy for a tunnel to authority, as another proxy does, with a
// certificate of a workload, and returns how that ended: nil is 200.
func connect(t *testing.T, from *onehost.Pod, self *mtls.Identity, to *onehost.Pod, authority string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, on(to, 15008))
	if err != nil {
		return err
	}
	s, err := hbone.Over(ctx, c, mtls.Client(self, peers(to)),
		hbone.Config{}, hbone.Request{Authority: authority}, func() {})
	if err != nil {
		return err
	}
	s.Reset(errors.New("that was all"))
	return nil
}

// peers are who may answer for a pod.
func peers(p *onehost.Pod) []spiffeid.ID {
	return []spiffeid.ID{spiffeid.RequireFromString("spiffe://cluster.local/ns/" + p.Spec.Namespace + "/sa/" + p.Spec.ServiceAccount)}
}

func (w *world) certificate(t *testing.T, node int, namespace, account string) *mtls.Identity {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	i, err := w.Nodes[node].Certificate(ctx, namespace, account)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// stranger is a pod out of the mesh that has a certificate of it: that of a pod on its
// node, for the CA gives a node no others.
func (w *world) stranger(t *testing.T, node int, account string) (*onehost.Pod, *mtls.Identity) {
	t.Helper()
	w.pod(t, node, onehost.PodSpec{Namespace: "app", Name: account})
	p := w.pod(t, node, onehost.PodSpec{Namespace: "plain", Name: account})
	return p, w.certificate(t, node, "app", account)
}

// TestDirect and TestIngress: somebody with a certificate of the mesh who speaks HBONE
// himself, an ingress gateway say, reaches a pod's ports, whether a Service has them or
// not, and policies go by his identity; nothing of the proxy is to be had that way.
func TestDirect(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		ingress, self := w.stranger(t, 0, "ingress")
		local, err := w.server.Serve(19999, answer("app/server"))
		if err != nil {
			t.Fatal(err)
		}
		defer local.Close()
		address := w.server.IP4().String()
		status := func(authority string) (code int) {
			err := connect(t, ingress, self, w.server, authority)
			var refused *hbone.StatusError
			switch {
			case err == nil:
				return http.StatusOK
			case errors.As(err, &refused):
				return refused.Code
			}
			t.Errorf("%s: %v", authority, err)
			return 0
		}
		want := map[string]int{
			address + ":18080": 200, address + ":19999": 200, address + ":18084": 503, // nobody listens
			address + ":15001": 503, address + ":15006": 503, address + ":15008": 503, address + ":15000": 503,
			"127.0.0.1:18080": 400, "127.0.0.1:15000": 400, w.second.IP4().String() + ":18080": 400, webVIP + ":80": 400, "nobody.example:80": 503,
		}
		for authority, code := range want {
			if got := status(authority); got != code {
				t.Errorf("CONNECT %s: %d, want %d", authority, got, code)
			}
		}
		t.Run("by policy", func(t *testing.T) {
			for principal, code := range map[string]int{"cluster.local/ns/app/sa/ingress": 200, "cluster.local/ns/app/sa/other": 401} {
				t.Run(principal, func(t *testing.T) {
					w.put(t, "AuthorizationPolicy", "app", "ingress", `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ingress, namespace: app}
spec: {rules: [{from: [{source: {principals: ["`+principal+`"]}}]}]}
`)
					w.refused(t, w.client, on(w.server, 18080), "none allowed") // the policy is in force
					if got := status(address + ":18080"); got != code {
						t.Errorf("%d, want %d", got, code)
					}
				})
			}
		})
	})
}

// TestZtunnelSecureMetrics: a pod of the mesh has the proxy's metrics over HBONE. Our own
// control plane on a folder of files gives no certificate to the proxy's own pod, which no
// node agent serves; proxy's tests show the rest.
func TestZtunnelSecureMetrics(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		if w.name != "istiod" {
			t.Log("not tried: there is no certificate for the proxy's own pod")
			return
		}
		n := w.Nodes[1]
		host := n.Addrs()[0].Addr()
		// It stays: the proxy's token is bound to it.
		err := w.Put("Pod", rootNamespace, "proxy-"+n.Name, fmt.Appendf(nil, `apiVersion: v1
kind: Pod
metadata: {name: proxy-%s, namespace: %s, labels: {app: ztunnel, istio.io/dataplane-mode: none, networking.istio.io/tunnel: http}}
spec: {nodeName: %[1]s, serviceAccountName: ztunnel, containers: [{name: istio-proxy, image: proxy}]}
status: {phase: Running, podIP: %[3]s, podIPs: [{ip: %[3]s}], conditions: [{type: Ready, status: "True"}]}
`, n.Name, rootNamespace, host))
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				return w.client.Dial(ctx, netip.MustParseAddrPort(addr))
			}}}
		eventually(t, "metrics come by mutual TLS", func() error {
			logs := w.AccessLogs()
			resp, err := client.Get("http://" + netip.AddrPortFrom(host, 15020).String() + "/metrics")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || !strings.Contains(string(body), "istio_build") {
				return fmt.Errorf("%s, %d bytes: %w", resp.Status, len(body), err)
			}
			lines, err := logs.Wait(t.Context(), w.client.IPs, []netip.Addr{host}, []string{"outbound", "inbound"})
			if err != nil {
				return err
			}
			for _, l := range lines {
				if l.SrcIdentity != "spiffe://cluster.local/ns/app/sa/client" || l.DstIdentity != "spiffe://cluster.local/ns/istio-system/sa/ztunnel" {
					return fmt.Errorf("%s: %q → %q", l.Direction, l.SrcIdentity, l.DstIdentity)
				}
			}
			return nil
		})
	})
}

// TestUncapturedSource: a client outside of the mesh calls a Service. What translates
// its address is kube-proxy, of which one rule of the node stands here; the server sees
// the client, and strict mTLS refuses it.
func TestUncapturedSource(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		vip := at("10.96.10.40", 80)
		w.put(t, "Service", "app", "translated", judged("translated", vip.Addr().String(), "", ""))
		if err := w.Nodes[0].Translate(vip, on(w.server, 18080)); err != nil {
			t.Fatal(err)
		}
		reaches(t, w.outside, vip, "app/server")
		if r, err := call(w.outside, vip); err != nil || r.sees != w.outside.IP4() {
			t.Errorf("the server sees %s, the client is %s: %v", r.sees, w.outside.IP4(), err)
		}
		w.put(t, "PeerAuthentication", "app", "strict", `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: app}
spec: {mtls: {mode: STRICT}}
`)
		w.refused(t, w.outside, vip, "explicitly denied by: "+strictPolicy)
		spread(t, w.client, vip, "app/server", "app/second")
	})
}
