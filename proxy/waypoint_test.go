package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/proxyproto"
	"github.com/warren-mesh/warren/xds/workload"
)

// What has a waypoint is reached through it, however the waypoint is named; the
// waypoint gets the client's identity and where it wanted to go.
func TestWaypoint(t *testing.T) {
	m := newMesh(t, 2)
	client, server := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server")
	server.echo(8080)
	var wp *gateway
	wp = m.nodes[1].gateway("waypoint", func(authority string) hop {
		if strings.HasSuffix(authority, ":99") {
			return hop{status: 404}
		}
		return wp.to(server, 8080)
	})
	other := m.nodes[1].gateway("other", func(string) hop { return hop{status: 503} })
	wps := hosted("wp", "10.96.1.1", func(s *workload.Service) { s.Ports = workload.NewPortMap(workload.Port{Service: 15008, Target: 15008}) })
	wp.serves(wps)
	byName := &workload.GatewayAddress{Hostname: wps.Key(), HBONEPort: 15008}
	byVIP := &workload.GatewayAddress{Address: wps.VIPs[0], HBONEPort: 15008}
	byPod := &workload.GatewayAddress{Address: workload.NetworkAddr{Addr: wp.IP4}, HBONEPort: 15008}
	nobody := &workload.GatewayAddress{Hostname: workload.NamespacedHostname{Namespace: "default", Hostname: "nobody"}, HBONEPort: 15008}
	idle := hosted("idle", "10.96.1.2", func(s *workload.Service) { s.Ports = wps.Ports })
	with := func(name, vip string, g *workload.GatewayAddress) *workload.Service {
		return hosted(name, vip, func(s *workload.Service) { s.Waypoint = g })
	}
	weighted := hosted("weighted", "10.96.0.4", func(s *workload.Service) {
		s.Waypoint = &workload.GatewayAddress{Address: workload.NetworkAddr{Addr: other.IP4}, HBONEPort: 15008}
		s.WeightedWaypoints = []workload.WeightedWaypoint{{Destination: *s.Waypoint}, {Destination: *byName, Weight: 1}}
	})
	m.apply(workload.Batch{Services: []*workload.Service{
		wps, idle, with("by-name", "10.96.0.1", byName), with("by-vip", "10.96.0.2", byVIP), with("by-pod", "10.96.0.3", byPod), weighted,
		with("lost", "10.96.0.5", nobody), with("closed", "10.96.0.6", &workload.GatewayAddress{Hostname: idle.Key(), HBONEPort: 15008}),
	}})
	for _, tt := range []struct{ to, host string }{
		{"10.96.0.1:80", "by-name"}, {"10.96.0.2:80", "by-vip"}, {"10.96.0.3:80", "by-pod"}, {"10.96.0.4:80", "weighted"},
	} {
		t.Run(tt.host, func(t *testing.T) {
			marks := [2]int{m.nodes[0].logs.mark(), m.nodes[1].logs.mark()}
			if saw := client.mustCall(tt.to); saw != wp.IP4.String() {
				t.Errorf("the server saw %s, the waypoint is %s", saw, wp.IP4)
			}
			got := wp.last(t)
			if got.peer != client.identity() || got.authority != tt.to || len(got.forwarded) != 1 ||
				!strings.HasPrefix(got.forwarded[0], `for="`+client.IP4.String()+":") || !strings.HasSuffix(got.forwarded[0], "host="+tt.host+".default.svc.cluster.local") {
				t.Errorf("the waypoint was asked %+v", got)
			}
			m.nodes[0].logs.access(t, marks[0], map[string]string{"direction": "outbound", "dst.workload": "waypoint", "dst.service": tt.host, "dst.hbone_addr": tt.to, "error": ""})
			m.nodes[1].logs.access(t, marks[1], map[string]string{"direction": "inbound", "src.identity": wp.identity(), "dst.workload": "server", "error": ""})
		})
	}
	t.Run("of a workload", func(t *testing.T) {
		server.change(func(w *workload.Workload) { w.Waypoint = byName })
		client.mustCall(server.addr(8080))
		if got := wp.last(t); got.authority != server.addr(8080) || strings.Contains(got.forwarded[0], "host=") {
			t.Errorf("the waypoint was asked %+v", got)
		}
		server.change(func(w *workload.Workload) { w.Waypoint = nil })
		before := wp.count()
		client.mustCall(server.addr(8080))
		if wp.count() != before {
			t.Error("a workload without a waypoint was reached through one")
		}
	})
	for _, tt := range []struct{ name, to, err string }{
		{"refuses", "10.96.0.1:99", "http status: 404"},
		{"unknown", "10.96.0.5:80", "unknown waypoint: default/nobody"},
		{"without endpoints", "10.96.0.6:80", "no healthy upstream: waypoint default/idle.default.svc.cluster.local: service default/idle.default.svc.cluster.local has no endpoints"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mark := m.nodes[0].logs.mark()
			client.mustFail(tt.to)
			m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "error": tt.err})
		})
	}
	t.Run("of another identity", func(t *testing.T) {
		wp.change(func(w *workload.Workload) { w.ServiceAccount = "somebody" })
		mark := m.nodes[0].logs.mark()
		client.mustFail("10.96.0.1:80")
		m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "error": "tls handshake error"})
	})
}

// A waypoint in the mesh: its proxy takes the tunnels and hands it plain TCP, with
// PROXY protocol or without; what it sends on is not sent back to it.
func TestSandwichedWaypoint(t *testing.T) {
	for _, tt := range []struct {
		name   string
		tunnel *workload.ApplicationTunnel
		local  bool
	}{
		{"PROXY on loopback", &workload.ApplicationTunnel{Protocol: workload.TunnelProxy, Port: 15088}, true},
		{"PROXY", &workload.ApplicationTunnel{Protocol: workload.TunnelProxy, Port: 15088}, false},
		{"plain", &workload.ApplicationTunnel{Port: 15088}, true},
		{"without a tunnel", nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMesh(t, 2, func(c *proxy.Config) { c.LocalhostTunnel = tt.local })
			client, server, wp := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server"), m.nodes[1].meshPod("waypoint")
			server.echo(8080)
			web := hosted("web", "10.96.0.1", func(s *workload.Service) {
				s.WeightedWaypoints = []workload.WeightedWaypoint{{Destination: workload.GatewayAddress{Address: workload.NetworkAddr{Addr: wp.IP4}, HBONEPort: 15008}, Weight: 3}}
			})
			server.serves(web)
			wp.change(func(w *workload.Workload) { w.ApplicationTunnel = tt.tunnel })
			m.apply(workload.Batch{Services: []*workload.Service{web}})
			port := 80
			if tt.tunnel != nil {
				port = int(tt.tunnel.Port)
			}
			told := make(chan string, 1)
			wp.listen(port, func(c *net.TCPConn) {
				relayOn(c, wp, tt.tunnel != nil && tt.tunnel.Protocol == workload.TunnelProxy, told)
			})
			if saw := client.mustCall("10.96.0.1:80"); saw != wp.IP4.String() {
				t.Errorf("the server saw %s, the waypoint is %s", saw, wp.IP4)
			}
			want := fmt.Sprintf("from %s", client.IP4)
			switch {
			case tt.tunnel != nil && tt.tunnel.Protocol == workload.TunnelProxy && tt.local:
				want = fmt.Sprintf("from 127.0.0.1, told %s to 10.96.0.1:80 as %s", client.IP4, client.identity())
			case tt.tunnel != nil && tt.tunnel.Protocol == workload.TunnelProxy:
				want += fmt.Sprintf(", told %s to 10.96.0.1:80 as %s", client.IP4, client.identity())
			}
			if got := <-told; got != want {
				t.Errorf("the waypoint's application saw a connection %s, want %s", got, want)
			}
			// A neighbour that addresses the waypoint's pod comes by the same way.
			near := m.nodes[1].meshPod("near")
			near.mustCall(wp.addr(port))
			want = strings.NewReplacer(client.IP4.String(), near.IP4.String(), "10.96.0.1:80", wp.addr(port), client.identity(), near.identity()).Replace(want)
			if got := <-told; got != want {
				t.Errorf("from a neighbour the application saw a connection %s, want %s", got, want)
			}
		})
	}
}

// A pod that is its own service's endpoint reaches itself, with the wire and without.
func TestOwnService(t *testing.T) {
	for _, near := range []bool{true, false} {
		t.Run(fmt.Sprintf("same node %v", near), func(t *testing.T) {
			m := newMesh(t, 1, func(c *proxy.Config) { c.SameNode = near })
			server := m.nodes[0].meshPod("server")
			server.echo(8080)
			web := hosted("web", "10.96.0.1")
			server.serves(web)
			m.apply(workload.Batch{Services: []*workload.Service{web}})
			if saw := server.mustCall("10.96.0.1:80"); saw != server.IP4.String() {
				t.Errorf("the server saw %s, and is %s", saw, server.IP4)
			}
		})
	}
}

// relayOn is the application of a waypoint: it calls the very service that it is a
// waypoint of.
func relayOn(c *net.TCPConn, wp *pod, proxied bool, told chan<- string) {
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	from, _ := netip.ParseAddr(host)
	said := "from " + from.Unmap().String()
	r := bufio.NewReader(c)
	if proxied {
		h, err := readHeader(r)
		if err != nil {
			told <- err.Error()
			return
		}
		said += fmt.Sprintf(", told %s to %s as %s", h.Src.Addr(), h.Dst, h.Identity)
	}
	select {
	case told <- said:
	default:
	}
	out, err := wp.dial("10.96.0.1:80")
	if err != nil {
		return
	}
	defer out.Close()
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(out, r); out.CloseWrite() })
	io.Copy(c, out)
	c.CloseWrite()
	wg.Wait()
}

func readHeader(r *bufio.Reader) (proxyproto.Header, error) {
	for size := 16; ; size++ {
		b, err := r.Peek(size)
		if err != nil {
			return proxyproto.Header{}, err
		}
		h, n, err := proxyproto.Parse(b)
		if err == nil {
			_, err = r.Discard(n)
			return h, err
		}
		if err != proxyproto.ErrShort {
			return h, err
		}
	}
}

// TestClosedByReset: Envoy resets a stream when what it connects to is closed. Of who ends
// HBONE by itself the application sees an end, as behind ztunnel, and the log the reset; of
// a proxy, which half-closes what is whole, a reset.
func TestClosedByReset(t *testing.T) {
	m := newMesh(t, 2)
	client, server := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server")
	over := make(chan struct{})
	// half leaves something unread, so that Close resets.
	half := func(c *net.UnixConn) {
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Error(err)
		}
		<-over
		c.Close()
	}
	wp := m.nodes[1].gateway("waypoint", func(string) hop { return hop{talk: half} })
	m.apply(workload.Batch{Services: []*workload.Service{hosted("judged", "10.96.0.1", func(s *workload.Service) {
		s.Waypoint = &workload.GatewayAddress{Address: workload.NetworkAddr{Addr: wp.IP4}, HBONEPort: 15008}
	})}})
	wants, served := make(chan error, 1), make(chan struct{})
	server.listen(8080, func(c *net.TCPConn) {
		ended(t, c, <-wants, over)
		served <- struct{}{}
	})
	for _, native := range []bool{true, false} {
		wp.change(func(w *workload.Workload) { w.NativeTunnel = native })
		want := error(syscall.ECONNRESET)
		if native {
			want = io.EOF
		}
		mark := m.nodes[0].logs.mark()
		c, err := client.dial("10.96.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		ended(t, c, want, over)
		m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "error": "CONNECT_ERROR"})

		wants <- want
		to := wp.to(server, 8080)
		out, err := wp.pool.Open(t.Context(), to.key, hbone.Request{Authority: to.authority})
		if err != nil {
			t.Fatal(err)
		}
		mark = m.nodes[1].logs.mark()
		half(wp.conn(out))
		<-served
		m.nodes[1].logs.access(t, mark, map[string]string{"direction": "inbound", "error": "CONNECT_ERROR"})
	}
}

// ended says more than the other side reads, reads what it says and wants to see that end.
func ended(t *testing.T, c *net.TCPConn, want error, over chan<- struct{}) {
	t.Helper()
	defer c.Close()
	if _, err := io.WriteString(c, "abc"); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	over <- struct{}{}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, want) {
		t.Errorf("the last read: %d, %v; want %v", n, err, want)
	}
}
