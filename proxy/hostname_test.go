package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/xds/workload"
)

// names is a resolver on loopback with addresses for names.
type names struct {
	addr netip.AddrPort
	mu   sync.Mutex
	zone map[string][]netip.Addr
}

func serveNames(t *testing.T) *names {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &names{addr: pc.LocalAddr().(*net.UDPAddr).AddrPort(), zone: map[string][]netip.Addr{}}
	up := make(chan struct{})
	s := &dns.Server{PacketConn: pc, Handler: n, NotifyStartedFunc: func() { close(up) }}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.ActivateAndServe() }()
	<-up
	t.Cleanup(func() { s.Shutdown(); <-ended })
	return n
}

func (n *names) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	n.mu.Lock()
	list, ok := n.zone[q.Question[0].Name]
	n.mu.Unlock()
	if !ok {
		m.Rcode = dns.RcodeNameError
	}
	for _, a := range list {
		kind := "A"
		if a.Is6() {
			kind = "AAAA"
		}
		if dns.TypeToString[q.Question[0].Qtype] == kind {
			rr, _ := dns.NewRR(fmt.Sprintf("%s 60 %s %s", q.Question[0].Name, kind, a))
			m.Answer = append(m.Answer, rr)
		}
	}
	w.WriteMsg(m)
}

// A workload, a waypoint or a gateway that has a hostname instead of an address is
// found by DNS.
func TestHostnames(t *testing.T) {
	resolver := serveNames(t)
	m := newMesh(t, 2, func(c *proxy.Config) { c.Nameservers = []netip.AddrPort{resolver.addr} })
	client := m.nodes[0].meshPod("client")
	outside := m.nodes[1].pod("outside")
	outside.echo(8080)
	wp := m.nodes[1].gateway("waypoint", func(string) hop { return hop{raw: outside.addr(8080)} })
	wp.change(func(w *workload.Workload) { w.Addresses, w.Hostname = nil, "wp.example" })
	resolver.mu.Lock()
	resolver.zone = map[string][]netip.Addr{
		"db.example.": {outside.IP4}, "six.example.": {outside.IP6}, "both.example.": {outside.IP4, outside.IP6},
		"wp.example.": {wp.IP4}, "self.example.": {netip.MustParseAddr("127.0.0.1")},
	}
	resolver.mu.Unlock()
	var b workload.Batch
	add := func(name, vip, host string, change ...func(*workload.Service)) {
		s := hosted(name, vip, change...)
		b.Services = append(b.Services, s)
		b.Workloads = append(b.Workloads, &workload.Workload{
			UID: "Kubernetes/networking.istio.io/ServiceEntry/default/" + name, Name: name, Namespace: "default", Hostname: host,
			Services: workload.Memberships{{Service: s.Key()}}, WorkloadName: name,
		})
	}
	own := func(s *workload.Service) { s.Ports = workload.NewPortMap(workload.Port{Service: 80, Target: 15001}) }
	add("db", "240.240.0.1", "db.example")
	add("six", "240.240.0.2", "six.example")
	add("nope", "240.240.0.3", "nope.example")
	add("self", "240.240.0.4", "self.example", own)
	add("odd", "240.240.0.5", "not a name")
	add("judged", "240.240.0.6", "nope.example", func(s *workload.Service) {
		s.Waypoint = &workload.GatewayAddress{Hostname: workload.NamespacedHostname{Namespace: "default", Hostname: "wp.example"}, HBONEPort: 15008}
	})
	add("both", "240.240.0.7", "both.example")
	add("both6", "2001:2::7", "both.example")
	add("only6", "240.240.0.8", "both.example", func(s *workload.Service) { s.IPFamilies = workload.IPv6Only })
	m.apply(b)
	for _, tt := range []struct{ to, workload, dst string }{
		{"240.240.0.1:80", "db", outside.addr(8080)},
		{"240.240.0.2:80", "six", netip.AddrPortFrom(outside.IP6, 8080).String()},
		{"240.240.0.6:80", "waypoint", wp.addr(15008)},
		{"240.240.0.7:80", "both", outside.addr(8080)},
		{"[2001:2::7]:80", "both6", netip.AddrPortFrom(outside.IP6, 8080).String()},
		{"240.240.0.8:80", "only6", netip.AddrPortFrom(outside.IP6, 8080).String()},
	} {
		mark := m.nodes[0].logs.mark()
		client.mustCall(tt.to)
		m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "dst.workload": tt.workload, "dst.addr": tt.dst, "error": ""})
	}
	for _, tt := range []struct{ to, err string }{
		{"240.240.0.3:80", "no ip addresses were resolved for workload: Kubernetes/networking.istio.io/ServiceEntry/default/nope: nope.example: no A/AAAA records: the name does not exist"},
		{"240.240.0.4:80", "attempted recursive call to ourselves"},
		{"240.240.0.5:80", `"not a name" is no hostname that can be resolved`},
	} {
		mark := m.nodes[0].logs.mark()
		client.mustFail(tt.to)
		m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "src.addr": client.IP4.String(), "error": tt.err})
	}
	if got := m.nodes[0].metric(t, "istio_on_demand_dns_total", "hostname", "db.example"); got != 1 {
		t.Errorf("lookups of db.example: %v", got)
	}
}

// metric is the value of a counter with that label.
func (n *node) metric(t *testing.T, name, label, value string) float64 {
	t.Helper()
	families, err := n.srv.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == label && l.GetValue() == value {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}

// A name that has no address, or an address at which nobody listens, costs no
// connection while there is another one.
func TestHostnamesAreRetried(t *testing.T) {
	resolver := serveNames(t)
	m := newMesh(t, 2, func(c *proxy.Config) { c.Nameservers = []netip.AddrPort{resolver.addr} })
	client := m.nodes[0].meshPod("client")
	good, deaf := m.nodes[1].pod("good"), m.nodes[1].pod("deaf")
	good.echo(8080)
	resolver.mu.Lock()
	resolver.zone = map[string][]netip.Addr{"good.example.": {good.IP4}, "mixed.example.": {deaf.IP4, good.IP4}, "deaf.example.": {deaf.IP4}, "dual.example.": {deaf.IP4, good.IP6}}
	resolver.mu.Unlock()
	named := func(vip string, hosts ...string) string {
		s := hosted("named-"+vip, vip)
		b := workload.Batch{Services: []*workload.Service{s}}
		for _, host := range hosts {
			b.Workloads = append(b.Workloads, &workload.Workload{
				UID: "entry/" + vip + "/" + host, Name: host, Namespace: "default", Hostname: host,
				Services: workload.Memberships{{Service: s.Key()}},
			})
		}
		m.apply(b)
		return vip + ":80"
	}
	for name, to := range map[string]string{
		"of two names one does not exist":     named("240.240.1.1", "nope.example", "good.example"),
		"of a name's addresses one is deaf":   named("240.240.1.2", "mixed.example"),
		"of a name's families one is deaf":    named("240.240.1.6", "dual.example"),
		"no name, a deaf one, and a good one": named("240.240.1.3", "nope.example", "deaf.example", "good.example"),
	} {
		t.Run(name, func(t *testing.T) {
			for range 30 {
				m.nodes[0].srv.WakeAll()
				client.mustCall(to)
			}
		})
	}
	mark := m.nodes[0].logs.mark()
	client.mustFail(named("240.240.1.4", "nope.example"))
	m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "error": "no ip addresses were resolved"})
	mark = m.nodes[0].logs.mark()
	client.mustFail(named("240.240.1.5", "deaf.example"))
	m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "error": "refused"})
}

// An endpoint behind a name is waited for while there is no other: its only address is
// none, nor is a name without any.
func TestOnlyAddressIsWaitedFor(t *testing.T) {
	resolver := serveNames(t)
	m := newMesh(t, 2, func(c *proxy.Config) { c.Nameservers = []netip.AddrPort{resolver.addr} })
	client, slow := m.nodes[0].meshPod("client"), m.nodes[1].pod("slow")
	resolver.mu.Lock()
	resolver.zone = map[string][]netip.Addr{"slow.example.": {slow.IP4}}
	resolver.mu.Unlock()
	fd := slow.hangs(8080)
	left := make(chan error, 2)
	for i, hosts := range [][]string{{"slow.example"}, {"nope.example", "slow.example"}} {
		vip := fmt.Sprintf("240.240.2.%d", i+1)
		s := hosted("slow"+vip, vip)
		b := workload.Batch{Services: []*workload.Service{s}}
		for _, host := range hosts {
			b.Workloads = append(b.Workloads, &workload.Workload{
				UID: "entry/" + vip + "/" + host, Name: host, Namespace: "default", Hostname: host,
				Services: workload.Memberships{{Service: s.Key()}},
			})
		}
		m.apply(b)
		go func() {
			c, err := client.dial(vip + ":80")
			if err == nil {
				_, err = io.ReadFull(c, make([]byte, 1))
				c.Close()
			}
			left <- err
		}()
	}
	select {
	case err := <-left:
		t.Fatalf("given up: %v", err)
	case <-time.After(proxy.ConnectPatience * 3 / 2):
	}
	if err := syscall.Listen(int(fd.Fd()), 8); err != nil { // has room now; SYNs come again
		t.Fatal(err)
	}
	l, err := net.FileListener(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("x"))
			defer c.Close()
		}
	}()
	for range 2 {
		if err := <-left; err != nil {
			t.Error(err)
		}
	}
}
