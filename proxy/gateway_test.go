package proxy_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/xds/workload"
)

// twoNetworks is a client in the default network, and a server and a gateway in
// network n2.
func twoNetworks(t *testing.T) (m *mesh, client, server *pod, gw *gateway, web *workload.Service) {
	m = newMesh(t, 2, farIsNode2)
	client, server, gw, web = m.twoNetworks()
	return m, client, server, gw, web
}

// farIsNode2 has the second node in network n2.
func farIsNode2(c *proxy.Config) {
	if c.NodeName == "node2" {
		c.Network = "n2"
	}
}

func (m *mesh) twoNetworks() (client, server *pod, gw *gateway, web *workload.Service) {
	client, server = m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server")
	refused := func(authority string) hop {
		if authority != "web.default.svc.cluster.local:80" {
			return hop{status: 404}
		}
		return hop{raw: server.addr(15008)}
	}
	gw = m.nodes[1].gateway("gateway", refused)
	gw.change(func(w *workload.Workload) { w.Network = "n2" })
	web = hosted("web", "10.96.0.1", func(s *workload.Service) {
		s.Ports = workload.NewPortMap(workload.Port{Service: 80, Target: 8080}, workload.Port{Service: 81, Target: 8081})
	})
	server.change(func(w *workload.Workload) {
		w.Network = "n2"
		w.NetworkGateway = &workload.GatewayAddress{Address: workload.NetworkAddr{Network: "n2", Addr: gw.IP4}, HBONEPort: 15008}
	})
	server.serves(web)
	m.apply(workload.Batch{Services: []*workload.Service{web}})
	return client, server, gw, web
}

// A service's endpoint in another network is reached through that network's
// gateway, in a tunnel within a tunnel; each end is proven to the client.
func TestDoubleHBONE(t *testing.T) {
	m, client, server, gw, web := twoNetworks(t)
	server.echo(8080)
	marks := [2]int{m.nodes[0].logs.mark(), m.nodes[1].logs.mark()}
	if saw := client.mustCall("10.96.0.1:80"); saw != gw.IP4.String() {
		t.Errorf("the server saw %s, the gateway is %s", saw, gw.IP4)
	}
	if got := gw.last(t); got.peer != client.identity() || got.authority != "web.default.svc.cluster.local:80" {
		t.Errorf("the gateway was asked %+v", got)
	}
	m.nodes[0].logs.access(t, marks[0], map[string]string{"direction": "outbound", "dst.workload": "server", "dst.hbone_addr": "web.default.svc.cluster.local:80", "error": ""})
	m.nodes[1].logs.access(t, marks[1], map[string]string{"direction": "inbound", "src.identity": client.identity(), "src.workload": "client", "dst.service": "web.default", "error": ""})

	t.Run("behind one entry for many", func(t *testing.T) {
		// The control plane may know a far service as a whole only: who it was
		// shows when it is reached.
		many := *server.w
		many.ServiceAccount, many.Name, many.WorkloadName = "nobody", "many", "many"
		known := hosted("web", "10.96.0.1", func(s *workload.Service) { s.SubjectAltNames = []string{server.identity()} })
		m.nodes[0].srv.Store().Apply(workload.Batch{Workloads: []*workload.Workload{&many}, Services: []*workload.Service{known}})
		mark := m.nodes[0].logs.mark()
		client.mustCall("10.96.0.1:80")
		m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "dst.workload": "server", "dst.identity": server.identity(), "error": ""})
		m.nodes[0].srv.Store().Apply(workload.Batch{Workloads: []*workload.Workload{server.w}, Services: []*workload.Service{web}})
	})
	t.Run("bulk, and many", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				text := bytes.Repeat([]byte{byte('a' + i%26)}, 1+i*977)
				if i%20 == 0 {
					text = bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB
				}
				c, err := client.dial("10.96.0.1:80")
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				go func() { c.Write(text); c.CloseWrite() }()
				b, err := io.ReadAll(c)
				if _, rest, _ := bytes.Cut(b, []byte("\n")); err != nil || !bytes.Equal(rest, text) {
					t.Errorf("connection %d: %d bytes back of %d, %v", i, len(rest), len(text), err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("an end each", func(t *testing.T) {
		server.listen(8081, func(c *net.TCPConn) { // answers, ends, then reads all
			io.WriteString(c, "bye")
			c.CloseWrite()
			b, err := io.ReadAll(c)
			late <- fmt.Sprintf("%d %v", len(b), err)
		})
		gw.sends(func(string) hop { return hop{raw: server.addr(15008)} })
		c, err := client.dial("10.96.0.1:81")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if b, err := io.ReadAll(c); string(b) != "bye" || err != nil {
			t.Fatalf("answer %q, %v", b, err)
		}
		c.Write(make([]byte, 100_000))
		c.Close()
		if got := <-late; got != "100000 <nil>" {
			t.Errorf("the server got %s after its own end", got)
		}
	})
	until(t, "all connections are gone", func() bool { return m.nodes[0].srv.Tracked().Len()+m.nodes[1].srv.Tracked().Len() == 0 })
	until(t, "all descriptors are given back", func() bool { return m.nodes[0].srv.Sockets() == 0 })
}

// What can go wrong between two networks ends the connection and says where.
func TestDoubleHBONEFailures(t *testing.T) {
	m, client, server, gw, _ := twoNetworks(t)
	server.echo(8080)
	was := gw.hops
	fails := func(name, text string) {
		t.Helper()
		mark := m.nodes[0].logs.mark()
		client.mustFail("10.96.0.1:80")
		line := m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "error": ":"})
		if got := fmt.Sprint(line["error"]); !strings.Contains(got, text) {
			t.Errorf("%s: %q, want %q", name, got, text)
		}
	}
	place := gw.IP4.String() + ":15008"
	gw.sends(func(string) hop { return hop{status: 503} })
	fails("the gateway refuses", "network gateway "+place+": http status: 503")
	gw.sends(func(string) hop { return hop{raw: gw.addr(9)} })
	fails("the gateway cannot connect", "network gateway "+place+": http status: 503")
	server.listen(9090, func(c *net.TCPConn) { io.WriteString(c, "this is no TLS at all"); io.Copy(io.Discard, c) })
	gw.sends(func(string) hop { return hop{raw: server.addr(9090)} })
	fails("no tunnel behind the gateway", "web.default.svc.cluster.local:80 behind network gateway "+place+": tls handshake error")
	gw.sends(was)
	another := *server.w
	another.ServiceAccount = "somebody"
	m.nodes[0].srv.Store().Apply(workload.Batch{Workloads: []*workload.Workload{&another}})
	fails("another identity behind the gateway", "behind network gateway "+place+": tls handshake error")
	m.apply(workload.Batch{Workloads: []*workload.Workload{server.w}})
	policy := deny("p", workload.Match{Principals: principals(client)})
	m.apply(workload.Batch{Policies: []*workload.Policy{policy}})
	fails("a policy of the destination", "behind network gateway "+place+": http status: 401")
	m.apply(workload.Batch{RemovedPolicies: []string{policy.ResourceName()}})
	client.mustCall("10.96.0.1:80")
	gw.change(func(w *workload.Workload) { w.ServiceAccount = "somebody" })
	fails("another identity of the gateway", "network gateway "+place+": tls handshake error")
	gw.change(func(w *workload.Workload) { w.ServiceAccount = "gateway" })

	second := m.nodes[0].meshPod("second")
	t.Run("another pod of the client's node goes", func(t *testing.T) {
		c, err := second.dial("10.96.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, len(gw.IP4.String())+1)); err != nil {
			t.Fatal(err)
		}
		if err := m.nodes[0].srv.Handler().Del(t.Context(), second.uid); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client read %v", err)
		}
	})
	t.Run("the gateway goes", func(t *testing.T) {
		c, err := client.dial("10.96.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, len(gw.IP4.String())+1)); err != nil {
			t.Fatal(err)
		}
		gw.cut()
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client read %v", err)
		}
	})
	until(t, "all descriptors are given back", func() bool { return m.nodes[0].srv.Sockets() == 0 })
}
