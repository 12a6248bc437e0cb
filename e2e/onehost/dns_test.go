package onehost_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// dialFrom connects as a program in the pod does, also over UDP.
func dialFrom(ctx context.Context, p *onehost.Pod, network, addr string) (c net.Conn, err error) {
	err = p.NS.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// resolve asks a server for an IPv4 address, as the pod's resolver would.
func resolve(t *testing.T, p *onehost.Pod, network string, server netip.Addr, name string) (netip.Addr, error) {
	t.Helper()
	c, err := dialFrom(testContext(t), p, network, netip.AddrPortFrom(server, 53).String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)); err != nil {
		return netip.Addr{}, err
	}
	m, err := conn.ReadMsg()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			ip, _ := netip.AddrFromSlice(a.A.To4())
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s: no address", dns.RcodeToString[m.Rcode])
}

// A pod that asks for it by its annotation has its DNS answered by the proxy, with
// the mesh's own names; from name to application the way goes through the mesh.
func TestDNSCapture(t *testing.T) {
	m := newMesh(t, onehost.Options{Env: []string{"ISTIO_META_DNS_CAPTURE=true"}})
	ctx := testContext(t)
	captured, err := m.Nodes[0].AddPod(ctx, onehost.PodSpec{
		Namespace: "app", Name: "captured", ServiceAccount: "a", Annotations: map[string]string{"ambient.istio.io/dns-capture": "true"},
	})
	if err != nil {
		t.Fatal(err)
	}
	other := addPod(t, m.Nodes[0], "app", "a", nil)
	server := addPod(t, m.Nodes[1], "app", "b", map[string]string{"app": "echo"})
	echo(t, server, 7)
	vip := netip.MustParseAddrPort("10.96.0.77:80")
	if err := m.PutService("app", "echo", vip, 7, map[string]string{"app": "echo"}); err != nil {
		t.Fatal(err)
	}
	waitPods(t, m)
	nobody := netip.MustParseAddr("10.99.0.254") // no resolver is there: what answers is the mesh
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range []string{"echo.app.svc.cluster.local", "echo.app", "echo"} {
			eventually(t, 20*time.Second, name+" by "+network, func() error {
				ip, err := resolve(t, captured, network, nobody, name)
				if err == nil && ip != vip.Addr() {
					err = fmt.Errorf("got %s", ip)
				}
				return err
			})
		}
		if ip, err := resolve(t, other, network, nobody, "echo"); err == nil {
			t.Errorf("%s: a pod that did not ask for it got %s", network, ip)
		}
	}
	ip, err := resolve(t, captured, "udp", nobody, "echo")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Capture.Quiet(ctx, 30*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	logs := m.AccessLogs()
	mustEcho(t, captured, netip.AddrPortFrom(ip, vip.Port()))
	lines, err := logs.Wait(ctx, captured.IPs, server.IPs, []string{"outbound", "inbound"})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		if l.SrcIdentity != "spiffe://cluster.local/ns/app/sa/a" || l.DstIdentity != "spiffe://cluster.local/ns/app/sa/b" {
			t.Errorf("%+v", l)
		}
	}
}

// fetch asks a server for a page from within a pod.
func fetch(p *onehost.Pod, url string) (string, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialFrom(ctx, p, network, addr)
		},
	}}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.Status + "\n" + string(b), err
}

// On the node's network readiness is for the node alone: no pod reaches it, in the
// mesh or not, by any address that the node has; and administration never.
func TestReadinessIsTheNodesOwn(t *testing.T) {
	m := newMesh(t, onehost.Options{Env: []string{"READINESS_ADDR=127.0.0.1"}})
	in, out := addPod(t, m.Nodes[0], "app", "a", nil), addPod(t, m.Nodes[0], "plain", "old", nil)
	far := addPod(t, m.Nodes[1], "app", "a", nil)
	waitPods(t, m)
	if err := m.Nodes[0].WaitProxyReady(testContext(t)); err != nil { // from the node itself
		t.Fatal(err)
	}
	var hosts []netip.Addr
	for _, a := range m.Nodes[0].Addrs() {
		hosts = append(hosts, a.Addr())
	}
	hosts = append(hosts, netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("127.0.0.1"))
	for _, p := range []*onehost.Pod{in, out, far} {
		for _, host := range hosts {
			for port, path := range map[uint16]string{15021: "/healthz/ready", 15000: "/config_dump"} {
				url := "http://" + netip.AddrPortFrom(host, port).String() + path
				if got, err := fetch(p, url); err == nil {
					t.Errorf("%s: %s answers %.60q", p.Spec.Name, url, got)
				}
			}
		}
		url := "http://" + netip.AddrPortFrom(hosts[0], 15020).String() + "/metrics" // the way there is open
		if got, err := fetch(p, url); err != nil || !strings.HasPrefix(got, "200") {
			t.Errorf("%s: %s: %.60q, %v", p.Spec.Name, url, got, err)
		}
	}
}
