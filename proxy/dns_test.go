package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/xds/workload"
)

// dnsPod makes a pod of the mesh whose queries are captured as well.
func (n *node) dnsPod(name string, opts ...nstest.PodOption) *pod {
	n.mesh.t.Helper()
	p := n.pod(name, opts...)
	p.w.Protocol = workload.HBONE
	rules := redirect.Defaults()
	rules.IPv4, rules.IPv6, rules.DNS = p.IP4.IsValid(), p.IP6.IsValid(), true
	if err := n.mesh.rules.Apply(p.NS, rules); err != nil {
		n.mesh.t.Fatal(err)
	}
	p.serve(n)
	n.mesh.apply(workload.Batch{Workloads: []*workload.Workload{p.w}})
	return p
}

// resolver is a DNS server in a pod outside of the mesh. It knows every name but
// those below cluster.local: its own address.
type resolver struct {
	*pod
	udp, tcp atomic.Int64
	mu       sync.Mutex
	from     map[string]bool // who asked
}

func (n *node) resolver(name string) *resolver {
	t := n.mesh.t
	t.Helper()
	r := &resolver{pod: n.pod(name), from: make(map[string]bool)}
	l, err := r.Listen("tcp", "[::]:53")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := r.ListenPacket("udp", "[::]:53")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: r}, {PacketConn: pc, Handler: r}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = s.Shutdown(); wg.Wait() })
	}
	return r
}

func (r *resolver) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	host, _, _ := net.SplitHostPort(w.RemoteAddr().String())
	addr, _ := netip.ParseAddr(host)
	r.mu.Lock()
	r.from[addr.Unmap().String()] = true
	r.mu.Unlock()
	udp := w.RemoteAddr().Network() == "udp"
	if udp {
		r.udp.Add(1)
	} else {
		r.tcp.Add(1)
	}
	name, qtype := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
	header := dns.RR_Header{Name: q.Question[0].Name, Rrtype: qtype, Class: dns.ClassINET, Ttl: 5}
	switch {
	case qtype == dns.TypeSRV:
		m.Answer = []dns.RR{&dns.SRV{Hdr: header, Port: 5432, Target: "pg-0.pg.default.svc.cluster.local."}}
	case strings.HasSuffix(name, ".cluster.local.") || strings.HasPrefix(name, "unknown."):
		m.Rcode = dns.RcodeNameError
	case qtype == dns.TypeTXT && udp:
		m.Truncated = true
	case qtype == dns.TypeTXT:
		for range 40 {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: header, Txt: []string{strings.Repeat("x", 60)}})
		}
	case qtype == dns.TypeA && strings.HasPrefix(name, "only6."): // no answer
	case qtype == dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: header, A: r.IP4.AsSlice()}}
	case qtype == dns.TypeAAAA:
		m.Answer = []dns.RR{&dns.AAAA{Hdr: header, AAAA: r.IP6.AsSlice()}}
	}
	_ = w.WriteMsg(m)
}

// ask sends one query from the pod, and returns the answer as one line.
func (p *pod) ask(network string, server netip.Addr, name string, qtype uint16) (string, error) {
	t := p.node.mesh.t
	c, err := p.Dial(t.Context(), network, netip.AddrPortFrom(server, 53).String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	conn := &dns.Conn{Conn: c, UDPSize: 4096}
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	q.SetEdns0(4096, false)
	if err := conn.WriteMsg(q); err != nil {
		return "", err
	}
	m, err := conn.ReadMsg()
	if err != nil {
		return "", err
	}
	if m.Id != q.Id {
		return "", fmt.Errorf("answer %d to question %d", m.Id, q.Id)
	}
	if m.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[m.Rcode], nil
	}
	var out []string
	for _, rr := range m.Answer {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return strings.Join(out, " "), nil
}

// echoService is a service with addresses of both families, whose endpoint is p.
func echoService(p *pod) workload.Batch {
	key := workload.NamespacedHostname{Namespace: "default", Hostname: "echo.default.svc.cluster.local"}
	w := *p.w
	w.Services = workload.Memberships{{Service: key}}
	return workload.Batch{
		Workloads: []*workload.Workload{&w},
		Services: []*workload.Service{{
			Name: "echo", Namespace: "default", Hostname: key.Hostname,
			VIPs:  []workload.NetworkAddr{{Addr: netip.MustParseAddr("10.96.0.10")}, {Addr: netip.MustParseAddr("fd00:96::10")}},
			Ports: workload.NewPortMap(workload.Port{Service: 80, Target: 8080}),
		}},
	}
}

// A pod's queries, whomever it asks, are answered from the mesh, or by whom it
// asked, who sees the pod ask.
func TestDNS(t *testing.T) {
	m := newMesh(t, 2)
	client := m.nodes[0].dnsPod("client")
	server := m.nodes[1].meshPod("server")
	server.echo(8080)
	one, two := m.nodes[1].resolver("one"), m.nodes[0].resolver("two")
	m.apply(echoService(server))
	for _, network := range []string{"udp", "tcp"} {
		for _, r := range []*resolver{one, two} {
			for _, ip := range []netip.Addr{r.IP4, r.IP6} {
				for _, tt := range []struct {
					name  string
					qtype uint16
					want  string
				}{
					{"echo.default.svc.cluster.local", dns.TypeA, "10.96.0.10"},
					{"Echo", dns.TypeAAAA, "fd00:96::10"},
					{"example.org", dns.TypeA, r.IP4.String()},
					{"example.org", dns.TypeAAAA, r.IP6.String()},
					{"unknown.example.org", dns.TypeA, "NXDOMAIN"},
					{"_sql._tcp.pg.default.svc.cluster.local", dns.TypeSRV, "0 0 5432 pg-0.pg.default.svc.cluster.local."},
				} {
					got, err := client.ask(network, ip, tt.name, tt.qtype)
					if err != nil || got != tt.want {
						t.Errorf("%s, %s asks %s for %s %s: %q, %v; want %q", client.Name, network, ip, tt.name, dns.TypeToString[tt.qtype], got, err, tt.want)
					}
				}
			}
		}
	}
	for _, r := range []*resolver{one, two} {
		r.mu.Lock()
		if !r.from[client.IP4.String()] || !r.from[client.IP6.String()] || len(r.from) != 2 {
			t.Errorf("%s was asked by %v", r.Name, r.from)
		}
		r.mu.Unlock()
	}
	t.Run("truncated answers are fetched whole", func(t *testing.T) {
		got, err := client.ask("udp", one.IP4, "long.example.org", dns.TypeTXT)
		if err != nil || strings.Count(got, "x") != 40*60 {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("the same question in a moment", func(t *testing.T) {
		_, _ = client.ask("udp", one.IP4, "again.example.org", dns.TypeA)
		before := one.udp.Load()
		for range 5 {
			if got, err := client.ask("udp", one.IP4, "again.example.org", dns.TypeA); err != nil || got != one.IP4.String() {
				t.Fatalf("%q, %v", got, err)
			}
		}
		if n := one.udp.Load() - before; n != 0 {
			t.Errorf("the resolver was asked %d times more", n)
		}
	})
	t.Run("from name to application", func(t *testing.T) {
		ip, err := client.ask("udp", one.IP4, "echo", dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		mark := client.node.logs.mark()
		client.mustCall(net.JoinHostPort(ip, "80"))
		client.node.logs.access(t, mark, map[string]string{"direction": "outbound", "dst.service": "echo.default.svc.cluster.local", "dst.identity": server.identity()})
	})
	t.Run("a change is seen at once", func(t *testing.T) {
		m.apply(workload.Batch{RemovedAddresses: []string{"default/echo.default.svc.cluster.local"}})
		if got, err := client.ask("udp", one.IP4, "echo.default.svc.cluster.local", dns.TypeA); err != nil || got != "NXDOMAIN" {
			t.Errorf("after the service went: %q, %v", got, err)
		}
		m.apply(echoService(server))
		if got, err := client.ask("udp", one.IP4, "echo.default.svc.cluster.local", dns.TypeA); err != nil || got != "10.96.0.10" {
			t.Errorf("after it came back: %q, %v", got, err)
		}
	})
	t.Run("counted", func(t *testing.T) {
		families, err := m.nodes[0].srv.Gatherer().Gather()
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, f := range families {
			seen[f.GetName()] = true
		}
		for _, name := range []string{"istio_dns_requests_total", "istio_dns_upstream_requests_total", "istio_dns_upstream_request_duration_seconds", "warren_dns_results_total"} {
			if !seen[name] {
				t.Errorf("no %s", name)
			}
		}
	})
	m.stop()
	if left := m.nodes[0].srv.Sockets(); left != 0 {
		t.Errorf("%d sockets were not given back", left)
	}
}

// The names that a pod's own resolver makes, by its own search list and ndots, lead
// where they lead without us.
func TestDNSSearch(t *testing.T) {
	m := newMesh(t, 1)
	client, server := m.nodes[0].dnsPod("client"), m.nodes[0].meshPod("server")
	r := m.nodes[0].resolver("resolver")
	m.apply(echoService(server))
	m.apply(workload.Batch{Services: []*workload.Service{{
		Name: "api", Namespace: "default", Hostname: "api.example.com", VIPs: []workload.NetworkAddr{{Addr: netip.MustParseAddr("240.240.0.1")}},
	}}})
	kubernetes := []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"}
	for _, tt := range []struct {
		name   string
		search []string
		ndots  int
		want   string // of the first name that has an answer
	}{
		{"echo", kubernetes, 5, "10.96.0.10"},
		{"echo.default", kubernetes, 5, "echo.default. 10.96.0.10"}, // with the first search domain, at once
		{"echo.default.svc", kubernetes, 1, "10.96.0.10"},
		{"api.example.com", kubernetes, 5, "api.example.com. 240.240.0.1"}, // as well
		{"api.example.com", kubernetes, 1, "240.240.0.1"},
		{"api.example.com", []string{"corp.example"}, 1, "240.240.0.1"},
		{"echo", []string{"default.svc.cluster.local"}, 1, "10.96.0.10"},
		{"db", []string{"corp.example"}, 1, r.IP4.String()}, // its own domain: the resolver knows it
		{"api", []string{"example.com"}, 1, "240.240.0.1"},
		{"echo.other", []string{"default.svc.cluster.local", "corp.example"}, 5, r.IP4.String()},
	} {
		conf := dns.ClientConfig{Search: tt.search, Ndots: tt.ndots}
		got := ""
		for _, name := range conf.NameList(tt.name) {
			answer, err := client.ask("udp", r.IP4, name, dns.TypeA)
			if err != nil {
				t.Fatal(err)
			}
			if answer != "NXDOMAIN" && answer != "" {
				got = answer
				break
			}
		}
		if got != tt.want {
			t.Errorf("%s by %v, ndots %d: %q, want %q", tt.name, tt.search, tt.ndots, got, tt.want)
		}
	}
}

// Pods of one family, and a resolver that does not answer.
func TestDNSOfOneFamily(t *testing.T) {
	m := newMesh(t, 1)
	server := m.nodes[0].meshPod("server")
	r := m.nodes[0].resolver("resolver")
	m.apply(echoService(server))
	for name, opt := range map[string]nstest.PodOption{"four": nstest.NoIPv6(), "six": nstest.NoIPv4()} {
		p := m.nodes[0].dnsPod(name, opt)
		ip := r.IP4
		if name == "six" {
			ip = r.IP6
		}
		for _, network := range []string{"udp", "tcp"} {
			for host, want := range map[string]string{"echo": "10.96.0.10", "example.org": r.IP4.String()} {
				if got, err := p.ask(network, ip, host, dns.TypeA); err != nil || got != want {
					t.Errorf("%s, %s: %s is %q, %v; want %q", name, network, host, got, err, want)
				}
			}
		}
	}
	nobody := m.nodes[0].pod("nobody")
	p := m.nodes[0].dnsPod("patient")
	if got, err := p.ask("udp", nobody.IP4, "example.org", dns.TypeA); err != nil || got != "SERVFAIL" {
		t.Errorf("with nobody there: %q, %v", got, err)
	}
	if got, err := p.ask("udp", nobody.IP4, "echo", dns.TypeA); err != nil || got != "10.96.0.10" {
		t.Errorf("the mesh's own name, with nobody there: %q, %v", got, err)
	}
}

// Without the DNS proxy nobody listens.
func TestDNSOff(t *testing.T) {
	m := newMesh(t, 1, func(c *proxy.Config) { c.DNS = false })
	client := m.nodes[0].meshPod("client")
	if c, err := client.Dial(t.Context(), "tcp", "127.0.0.1:15053"); err == nil {
		c.Close()
		t.Error("somebody listens on 15053")
	}
	on := newMesh(t, 1)
	other := on.nodes[0].meshPod("client")
	c, err := other.Dial(t.Context(), "tcp", "127.0.0.1:15053")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := on.nodes[0].srv.Handler().Del(t.Context(), other.uid); err != nil {
		t.Fatal(err)
	}
	on.nodes[0].srv.AgentState(true, true)
	if err := on.nodes[0].srv.Handler().Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the connection ended with %v", err)
	}
}

// ENABLE_PROXY=false: queries are answered, and nothing else is done for the pod.
func TestDNSOnly(t *testing.T) {
	m := newMesh(t, 1, func(c *proxy.Config) { c.DNSOnly = true })
	client := m.nodes[0].dnsPod("client")
	one := m.nodes[0].resolver("one")
	m.apply(echoService(client))
	if got, err := client.ask("udp", one.IP4, "echo", dns.TypeA); err != nil || got != "10.96.0.10" {
		t.Errorf("%q, %v", got, err)
	}
	for _, port := range []uint16{proxy.OutboundPort, proxy.PlaintextPort, proxy.HBONEPort} {
		if c, err := client.Dial(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			t.Errorf("somebody listens on %d", port)
		}
	}
}

// A resolv.conf that is of no use is no reason to serve no pod: the mesh's names are answered,
// and others by whom the pod asked.
func TestDNSWithoutResolvers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver dns.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := newMesh(t, 1, func(c *proxy.Config) { c.ResolvConf = path })
	client, server := m.nodes[0].dnsPod("client"), m.nodes[0].meshPod("server")
	m.apply(echoService(server))
	if got, err := client.ask("udp", m.nodes[0].resolver("resolver").IP4, "echo.default.svc.cluster.local", dns.TypeA); err != nil || got != "10.96.0.10" {
		t.Errorf("%q, %v", got, err)
	}
	if !strings.Contains(m.nodes[0].logs.text(), "there is no resolver of the proxy's own") {
		t.Error("nobody is told")
	}
}
