package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/xds/workload"
)

// Either end may finish first, and the other still gets its bytes through.
func TestHalfClose(t *testing.T) {
	m := newMesh(t, 2)
	client := m.nodes[0].meshPod("client")
	server := m.nodes[1].meshPod("server")
	outside := m.nodes[1].pod("outside")
	for _, s := range []*pod{server, outside} {
		s.listen(8080, func(c *net.TCPConn) { // reads all, then answers
			b, err := io.ReadAll(c)
			if err == nil {
				fmt.Fprintf(c, "got %d", len(b))
			}
		})
		s.listen(9090, func(c *net.TCPConn) { // answers, ends, then reads all
			io.WriteString(c, "bye")
			c.CloseWrite()
			b, err := io.ReadAll(c)
			late <- fmt.Sprintf("%d %v", len(b), err)
		})
	}
	for _, s := range []*pod{server, outside} {
		t.Run("client first to "+s.Name, func(t *testing.T) {
			c, err := client.dial(s.addr(8080))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write(make([]byte, 100_000))
			c.CloseWrite()
			if b, err := io.ReadAll(c); string(b) != "got 100000" || err != nil {
				t.Errorf("answer %q, %v", b, err)
			}
		})
		t.Run("server first from "+s.Name, func(t *testing.T) {
			c, err := client.dial(s.addr(9090))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if b, err := io.ReadAll(c); string(b) != "bye" || err != nil {
				t.Fatalf("answer %q, %v", b, err)
			}
			if _, err := c.Write(make([]byte, 100_000)); err != nil {
				t.Fatal(err)
			}
			c.Close()
			if got := <-late; got != "100000 <nil>" {
				t.Errorf("the server got %s after its own end", got)
			}
		})
	}
}

// late is what servers of TestHalfClose got after they had ended.
var late = make(chan string, 1)

func TestBulkAndMany(t *testing.T) {
	m := newMesh(t, 2)
	client := m.nodes[0].meshPod("client")
	server := m.nodes[1].meshPod("server")
	server.echo(8080)
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			text := bytes.Repeat([]byte{byte('a' + i%26)}, 1+i*17)
			if i%100 == 0 {
				text = bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB
			}
			c, err := client.dial(server.addr(8080))
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
	until(t, "all connections are gone", func() bool { return m.nodes[0].srv.Tracked().Len()+m.nodes[1].srv.Tracked().Len() == 0 })
}

// A service's address spreads over its endpoints and translates ports; both ends
// say which service it was.
func TestService(t *testing.T) {
	m := newMesh(t, 2)
	client := m.nodes[0].meshPod("client")
	key := workload.NamespacedHostname{Namespace: "default", Hostname: "echo.default.svc.cluster.local"}
	var servers []*pod
	for i, n := range m.nodes {
		s := n.meshPod(fmt.Sprintf("server%d", i))
		w := *s.w
		w.Services = workload.Memberships{{Service: key}}
		s.listen(8080, func(c *net.TCPConn) { io.WriteString(c, s.Name) })
		m.apply(workload.Batch{Workloads: []*workload.Workload{&w}})
		servers = append(servers, s)
	}
	vip := netip.MustParseAddr("10.96.0.10")
	m.apply(workload.Batch{Services: []*workload.Service{{
		Name: "echo", Namespace: "default", Hostname: key.Hostname, VIPs: []workload.NetworkAddr{{Addr: vip}},
		Ports: workload.NewPortMap(workload.Port{Service: 80, Target: 8080}),
	}}})
	seen := map[string]int{}
	marks := []int{m.nodes[0].logs.mark(), m.nodes[1].logs.mark()}
	for range 30 {
		c, err := client.dial(netip.AddrPortFrom(vip, 80).String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c)
		c.Close()
		if err != nil {
			t.Fatal(err)
		}
		seen[string(b)]++
	}
	if seen["server0"] == 0 || seen["server1"] == 0 || len(seen) != 2 {
		t.Errorf("answers came from %v", seen)
	}
	client.node.logs.access(t, marks[0], map[string]string{"direction": "outbound", "dst.service": key.Hostname, "dst.workload": "server1"})
	servers[1].node.logs.access(t, marks[1], map[string]string{"direction": "inbound", "dst.service": key.Hostname})
	t.Run("a port that it does not have", func(t *testing.T) {
		mark := client.node.logs.mark()
		client.mustFail(netip.AddrPortFrom(vip, 81).String())
		client.node.logs.access(t, mark, map[string]string{"direction": "outbound", "message": "connection failed", "error": "no healthy upstream: 10.96.0.10:81"})
	})
}

// Certificates of a second change under traffic and nothing notices; a pooled
// tunnel does not outlive its certificate.
func TestRotation(t *testing.T) {
	m := newMesh(t, 2, func(c *proxy.Config) { c.SecretTTL = 2 * time.Second })
	client := m.nodes[0].meshPod("client")
	server := m.nodes[1].meshPod("server")
	server.echo(8080)
	long := open(t, client, server.addr(8080))
	defer long.Close()
	end := time.Now().Add(2500 * time.Millisecond)
	for n := 0; time.Now().Before(end); n++ {
		if _, answer, err := client.call(server.addr(8080), "x"); err != nil || answer != "x" {
			t.Fatalf("call %d: %q, %v", n, answer, err)
		}
	}
	long.ping(t)
}

// The end of the proxy: no new connections at once, those that there are go on
// until the deadline, then they are cut.
func TestDrain(t *testing.T) {
	m := newMesh(t, 2, func(c *proxy.Config) { c.DrainDeadline = 700 * time.Millisecond })
	client := m.nodes[0].meshPod("client")
	server := m.nodes[1].meshPod("server")
	server.echo(8080)
	stays, ends := open(t, client, server.addr(8080)), open(t, client, server.addr(8080))
	defer stays.Close()
	defer ends.Close()
	readyURL := "http://" + m.nodes[0].srv.Addresses()[len(m.nodes[0].srv.Addresses())-1] + "/healthz/ready"
	mark := client.node.logs.mark()
	m.nodes[0].srv.Quit()
	until(t, "readiness is gone", func() bool {
		resp, err := http.Get(readyURL)
		if err == nil {
			resp.Body.Close()
		}
		return err != nil
	})
	until(t, "new connections are refused", func() bool {
		c, err := client.dial(server.addr(8080))
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	ends.ping(t)
	ends.Close()
	stays.ping(t)
	started := time.Now()
	if _, err := io.ReadAll(stays); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("ended with %v, want a reset", err)
	}
	if d := time.Since(started); d > 3*time.Second {
		t.Errorf("cut after %s, the deadline is 700 ms", d)
	}
	client.node.logs.access(t, mark, map[string]string{"direction": "outbound", "error": "connection closed due to connection drain"})
}

// What the node agent may say, in any order.
func TestPodsComeAndGo(t *testing.T) {
	m := newMesh(t, 2)
	client := m.nodes[0].meshPod("client")
	server := m.nodes[1].meshPod("server")
	server.echo(8080)
	h := m.nodes[1].srv.Handler()
	t.Run("the same again changes nothing", func(t *testing.T) {
		l := open(t, client, server.addr(8080))
		defer l.Close()
		server.serve(m.nodes[1])
		l.ping(t)
	})
	t.Run("kept by a snapshot", func(t *testing.T) {
		l := open(t, client, server.addr(8080))
		defer l.Close()
		h.Keep(server.uid)
		if err := h.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.ping(t)
	})
	t.Run("gone with its connections", func(t *testing.T) {
		l := open(t, client, server.addr(8080))
		defer l.Close()
		mark := server.node.logs.mark()
		if err := h.Del(t.Context(), server.uid); err != nil {
			t.Fatal(err)
		}
		server.node.logs.access(t, mark, map[string]string{"direction": "inbound", "error": "connection closed due to connection drain"})
		if _, err := io.ReadAll(l); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("ended with %v, want a reset", err)
		}
		if err := h.Del(t.Context(), server.uid); err != nil {
			t.Errorf("once more: %v", err)
		}
		client.mustFail(server.addr(8080)) // redirected but not served: blocked, not plaintext
	})
	t.Run("back again", func(t *testing.T) {
		server.serve(m.nodes[1])
		client.mustCall(server.addr(8080))
	})
	t.Run("not in a snapshot", func(t *testing.T) {
		m.nodes[1].srv.AgentState(true, false) // a new connection: names come anew
		if err := h.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		client.mustFail(server.addr(8080))
	})
	t.Run("a new namespace", func(t *testing.T) {
		server.serve(m.nodes[1])
		reborn := m.nodes[1].Node.Pod("reborn")
		ns, err := reborn.NS.Dup()
		if err != nil {
			t.Fatal(err)
		}
		info := zds.Info{Name: "server", Namespace: "default", ServiceAccount: "server"}
		if err := h.Add(t.Context(), zds.Workload{UID: server.uid, NS: ns, Info: info}); err != nil {
			t.Fatal(err)
		}
		client.mustFail(server.addr(8080))
		c, err := reborn.Dial(t.Context(), "tcp", "127.0.0.1:15008")
		if err != nil {
			t.Fatalf("nobody listens in the new namespace: %v", err)
		}
		c.Close()
		_ = h.Del(t.Context(), server.uid)
		m.stop()
	})
}

// A pod whose ports are taken is refused, said to be pending, and served once
// they are free.
func TestPending(t *testing.T) {
	m := newMesh(t, 1)
	p := m.nodes[0].pod("p")
	p.redirect()
	taken, err := p.Listen("tcp", ":15006")
	if err != nil {
		t.Fatal(err)
	}
	ns, err := p.NS.Dup()
	if err != nil {
		t.Fatal(err)
	}
	h := m.nodes[0].srv.Handler()
	err = h.Add(t.Context(), zds.Workload{UID: "u", NS: ns, Info: zds.Info{Name: "p", Namespace: "default", ServiceAccount: "p"}})
	if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("Add: %v, want an address in use", err)
	}
	if c, err := p.Dial(t.Context(), "tcp", "127.0.0.1:15001"); err == nil {
		c.Close()
		t.Error("a listener of a pod that failed is open")
	}
	taken.Close()
	m.nodes[0].srv.RetryPods(context.Background())
	closed(t, ns)
	c, err := p.Dial(t.Context(), "tcp", "127.0.0.1:15006")
	if err == nil {
		c.Close()
	} else if !errors.Is(err, syscall.ECONNRESET) { // a call to our own port is not served, but somebody hangs up
		t.Fatalf("not served after the retry: %v", err)
	}
}
