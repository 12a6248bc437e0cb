package proxy_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/xds/workload"
)

// viaSOCKS asks the pod's proxy for a connection to a host, by name or address,
// and returns the answer's code.
func (p *pod) viaSOCKS(host string, port uint16) (*net.TCPConn, byte, error) {
	c, err := p.dial("127.0.0.1:15080")
	if err != nil {
		return nil, 0, err
	}
	request := append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(host))}, host...)
	if a, err := netip.ParseAddr(host); err == nil {
		typ := byte(1)
		if a.Is6() {
			typ = 4
		}
		request = append([]byte{5, 1, 0, 5, 1, 0, typ}, a.AsSlice()...)
	}
	if _, err := c.Write(binary.BigEndian.AppendUint16(request, port)); err != nil {
		return c, 0, err
	}
	answer := make([]byte, 2+10)
	if _, err := io.ReadFull(c, answer); err != nil {
		return c, 0, fmt.Errorf("read %x: %w", answer, err)
	}
	if string(answer[:2]) != "\x05\x00" || answer[2] != 5 {
		return c, 0, fmt.Errorf("answer %x", answer)
	}
	return c, answer[3], nil
}

// A client of SOCKS gets where it would by itself, by the same ways, and is told
// what became of it: never that it is connected before it is.
func TestSOCKS(t *testing.T) {
	m := newMesh(t, 1)
	r := m.nodes[0].resolver("resolver")
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+r.IP4.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := m.addNode("node2", func(c *proxy.Config) { c.SOCKS5, c.ResolvConf = true, conf })
	client, near := n.meshPod("client"), n.meshPod("near")
	far, outside := m.nodes[0].meshPod("far"), m.nodes[0].pod("outside")
	for _, p := range []*pod{far, near, outside, r.pod} {
		p.echo(8080)
	}
	m.apply(workload.Batch{Workloads: []*workload.Workload{client.w, near.w, far.w}}) // the nodes came one after the other
	m.apply(echoService(far))
	m.apply(workload.Batch{Policies: []*workload.Policy{deny("p", workload.Match{DestinationPorts: []uint16{9999}})}})
	for _, tt := range []struct {
		name, host string
		port       uint16
		code       byte
		saw        string
	}{
		{"a mesh pod", far.IP4.String(), 8080, 0, client.IP4.String()},
		{"a mesh pod, IPv6", far.IP6.String(), 8080, 0, client.IP6.String()},
		{"a mesh pod of this node", near.IP4.String(), 8080, 0, client.IP4.String()},
		{"somebody outside", outside.IP4.String(), 8080, 0, client.IP4.String()},
		{"a service", "10.96.0.10", 80, 0, client.IP4.String()},
		{"a service by its name", "echo.default.svc.cluster.local", 80, 0, client.IP4.String()},
		{"a service by a short name", "echo", 80, 0, client.IP4.String()},
		{"nobody listens outside", outside.IP4.String(), 1, 5, ""},
		{"nobody listens in a mesh pod", far.IP4.String(), 1, 1, ""},
		{"a policy denies it", far.IP4.String(), 9999, 2, ""},
		{"a policy denies it on this node", near.IP4.String(), 9999, 2, ""},
		{"a service without that port", "10.96.0.10", 81, 1, ""},
		{"another name", "example.org", 8080, 0, client.IP4.String()},
		{"a name that nobody knows", "unknown.example.org", 80, 4, ""},
		{"the proxy itself", "127.0.0.1", 15001, 2, ""},
		{"this very port", "127.0.0.1", 15080, 2, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, code, err := client.viaSOCKS(tt.host, tt.port)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if code != tt.code {
				t.Fatalf("told %d, want %d", code, tt.code)
			}
			if code != 0 {
				if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
					t.Errorf("after the answer: %q, %v", b, err)
				}
				return
			}
			if saw, answer, err := talk(c, "hello"); err != nil || answer != "hello" || saw != tt.saw {
				t.Errorf("saw %s, answer %q, %v", saw, answer, err)
			}
		})
	}
	m.stop()
	for _, n := range m.nodes {
		if left := n.srv.Sockets(); left != 0 {
			t.Errorf("%d sockets were not given back", left)
		}
	}
}

// Names that the mesh does not know go to the proxy's resolvers, and a client that
// is slow to ask holds up nobody.
func TestSOCKSNames(t *testing.T) {
	conf := t.TempDir() + "/resolv.conf"
	m := newMesh(t, 1, func(c *proxy.Config) { c.SOCKS5, c.DNS, c.ResolvConf = true, false, conf })
	client := m.nodes[0].meshPod("client")
	slow, err := client.dial("127.0.0.1:15080")
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	c, code, err := client.viaSOCKS("unknown.example.org", 80)
	if err != nil || code != 4 {
		t.Fatalf("told %d, %v; want host unreachable", code, err)
	}
	c.Close()
	if c, err := client.dial("127.0.0.1:15053"); err == nil {
		c.Close()
		t.Error("the DNS proxy is off, and listens")
	}
	m.stop() // ends the slow one as well
	if _, err := io.ReadAll(slow); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
}

// Off is the default.
func TestSOCKSOff(t *testing.T) {
	m := newMesh(t, 1)
	if c, err := m.nodes[0].meshPod("client").dial("127.0.0.1:15080"); err == nil {
		c.Close()
		t.Error("somebody listens on 15080")
	}
}

// A name is looked up in the families that the pod has: one without IPv4 cannot use it.
func TestSOCKSFamilies(t *testing.T) {
	m := newMesh(t, 1)
	r := m.nodes[0].resolver("resolver")
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+r.IP4.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := m.addNode("node2", func(c *proxy.Config) { c.SOCKS5, c.ResolvConf = true, conf })
	client := n.meshPod("client")
	r.echo(8080)
	for _, tt := range []struct {
		has  []netip.Addr
		want netip.Addr
	}{
		{[]netip.Addr{client.IP4, client.IP6}, r.IP4},
		{[]netip.Addr{client.IP6}, r.IP6},
		{[]netip.Addr{client.IP4}, r.IP4},
	} {
		client.change(func(w *workload.Workload) { w.Addresses = tt.has })
		mark := n.logs.mark()
		c, code, err := client.viaSOCKS("www.example.org", 8080)
		if err != nil || code != 0 {
			t.Fatalf("%v: told %d, %v", tt.has, code, err)
		}
		if _, answer, err := talk(c, "hello"); err != nil || answer != "hello" {
			t.Errorf("%v: answer %q, %v", tt.has, answer, err)
		}
		c.Close()
		n.logs.access(t, mark, map[string]string{"direction": "outbound", "dst.addr": netip.AddrPortFrom(tt.want, 8080).String(), "error": ""})
	}
}

// A name's next address is tried when one does not take the connection.
func TestSOCKSNextAddress(t *testing.T) {
	m := newMesh(t, 1, func(c *proxy.Config) { c.SOCKS5 = true })
	n := m.nodes[0]
	client, deaf, good := n.meshPod("client"), n.meshPod("deaf"), n.meshPod("good")
	good.echo(8080)
	s := hosted("pair", "10.96.0.77", func(s *workload.Service) { s.VIPs = nil }) // headless
	deaf.serves(s)
	good.serves(s)
	m.apply(workload.Batch{Services: []*workload.Service{s}})
	for range 16 { // whichever comes first
		c, code, err := client.viaSOCKS(s.Hostname, 8080)
		if err != nil || code != 0 {
			t.Fatalf("told %d, %v", code, err)
		}
		c.Close()
	}
	if left(t, n, "unavailable") == 0 {
		t.Error("the deaf one never came first")
	}
}

// Nor is a connection lost to an address about which nothing can be decided, be it the first
// one or a later one.
func TestSOCKSUndecidedAddress(t *testing.T) {
	m := newMesh(t, 1, func(c *proxy.Config) { c.SOCKS5 = true })
	n := m.nodes[0]
	client, good := n.meshPod("client"), n.meshPod("good")
	good.echo(8080)
	s := hosted("four", "10.96.0.78", func(s *workload.Service) { s.VIPs = nil }) // headless
	others := []*pod{n.meshPod("deaf"), n.meshPod("lost"), n.meshPod("away")}
	for i, p := range append(others, good) {
		p.serves(s)
		if i == 1 || i == 2 {
			w := *p.w
			w.Waypoint = &workload.GatewayAddress{Hostname: workload.NamespacedHostname{Namespace: "default", Hostname: "nobody"}, HBONEPort: 15008}
			m.apply(workload.Batch{Workloads: []*workload.Workload{&w}})
		}
	}
	m.apply(workload.Batch{Services: []*workload.Service{s}})
	for range 32 { // in whatever order
		c, code, err := client.viaSOCKS(s.Hostname, 8080)
		if err != nil || code != 0 {
			t.Fatalf("told %d, %v", code, err)
		}
		c.Close()
	}
	if left(t, n, "unavailable") == 0 {
		t.Error("the deaf one never came first")
	}
}

// The addresses of a name's other family are tried when those of the first do not take the
// connection, and are not needed when they do.
func TestSOCKSOtherFamily(t *testing.T) {
	m := newMesh(t, 1)
	r := m.nodes[0].resolver("resolver")
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+r.IP4.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := m.addNode("node2", func(c *proxy.Config) { c.SOCKS5, c.ResolvConf = true, conf })
	client := n.meshPod("client")
	for _, tt := range []struct {
		port  uint16
		local netip.Addr // who listens
	}{{8081, r.IP6}, {8082, r.IP4}} {
		l, err := r.Listen("tcp", netip.AddrPortFrom(tt.local, tt.port).String())
		if err != nil {
			t.Fatal(err)
		}
		var accepting sync.WaitGroup
		accepting.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		})
		t.Cleanup(func() { l.Close(); accepting.Wait() })
		mark := n.logs.mark()
		c, code, err := client.viaSOCKS("www.example.org", tt.port)
		if err != nil || code != 0 {
			t.Fatalf("%s alone listens: told %d, %v", tt.local, code, err)
		}
		if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
			t.Errorf("%s alone listens: %q, %v", tt.local, b, err)
		}
		c.Close()
		n.logs.access(t, mark, map[string]string{"direction": "outbound", "dst.addr": netip.AddrPortFrom(tt.local, tt.port).String(), "error": ""})
	}
	// With what is known of one family alone, the other one may be missing.
	if c, code, err := client.viaSOCKS("only6.example.org", 8081); err != nil || code != 0 {
		t.Errorf("a name without IPv4: told %d, %v", code, err)
	} else {
		c.Close()
	}
}

// On demand the mesh is known as far as somebody asked for it: what a name means is the
// resolver's to say, and only where that leads is the mesh's.
func TestSOCKSOnDemand(t *testing.T) {
	m := newMesh(t, 1)
	r := m.nodes[0].resolver("resolver")
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+r.IP4.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := m.addNode("node2", func(c *proxy.Config) { c.SOCKS5, c.OnDemand, c.DNS, c.ResolvConf = true, true, false, conf })
	client, server := n.meshPod("client"), m.nodes[0].meshPod("server")
	server.echo(8080)
	r.echo(8080)
	m.apply(workload.Batch{Workloads: []*workload.Workload{client.w, server.w}})
	m.apply(echoService(server))
	for _, tt := range []struct {
		host string
		port uint16
		code byte
	}{
		{"echo.default.svc.cluster.local", 80, 4}, // known by chance, and not to the resolver
		{"echo", 8080, 0},                         // likewise, and the resolver says something else
		{"10.96.0.10", 80, 0},
		{"example.org", 8080, 0},
	} {
		t.Run(tt.host, func(t *testing.T) {
			c, code, err := client.viaSOCKS(tt.host, tt.port)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if code != tt.code {
				t.Fatalf("told %d, want %d", code, tt.code)
			}
			if code == 0 {
				if saw, answer, err := talk(c, "hello"); err != nil || answer != "hello" || saw != client.IP4.String() {
					t.Errorf("saw %s, answer %q, %v", saw, answer, err)
				}
			}
		})
	}
}
