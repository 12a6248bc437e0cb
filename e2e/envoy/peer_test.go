//go:build envoy

package envoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// serve runs an application in a pod until the test ends.
func serve(t *testing.T, p *onehost.Pod, port int, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	s, err := p.Serve(port, handle)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return netip.AddrPortFrom(p.IP4(), uint16(port))
}

func dial(p *onehost.Pod, to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := p.Dial(ctx, to)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(2 * patience))
	}
	return c, err
}

func mustDial(t *testing.T, p *onehost.Pod, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := dial(p, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// echoed sends bytes through an echo, half-closes, and expects all of them back.
func echoed(p *onehost.Pod, to netip.AddrPort, size int64) error {
	c, err := dial(p, to)
	if err != nil {
		return err
	}
	defer c.Close()
	sent, got := crc32.NewIEEE(), crc32.NewIEEE()
	var wg sync.WaitGroup
	var sendErr error
	wg.Go(func() {
		source := io.LimitReader(rand.NewChaCha8([32]byte{byte(size)}), size)
		if _, sendErr = io.Copy(c, io.TeeReader(source, sent)); sendErr == nil {
			sendErr = c.CloseWrite()
		}
	})
	n, err := io.Copy(got, c)
	wg.Wait()
	if err = errors.Join(err, sendErr); err == nil && (n != size || got.Sum32() != sent.Sum32()) {
		err = fmt.Errorf("%d of %d bytes came back, checksum %x, sent %x", n, size, got.Sum32(), sent.Sum32())
	}
	return err
}

// all runs n of them at once.
func all(n int, one func(int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = one(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// peers is a mesh in which Envoy speaks HBONE with Warren's proxies: client to Envoy by a
// Service of TCP, Envoy to server, and from inside Envoy's pod by its port front.
type peers struct {
	*onehost.Mesh
	client, server, wp *onehost.Pod
	*envoy
	service, front netip.AddrPort
}

const echoPort, frontPort = 7, 9000

func newPeers(t *testing.T, http2 object) *peers {
	t.Helper()
	m := newMesh(t, onehost.Options{})
	p := &peers{Mesh: m, client: addPod(t, m.Nodes[0], "client", nil), server: addPod(t, m.Nodes[1], "server", map[string]string{"app": "web"}),
		wp: addWaypoint(t, m.Nodes[0], "wp"), service: netip.MustParseAddrPort(vip + ":80")}
	p.front = netip.AddrPortFrom(p.wp.IP4(), frontPort)
	echo := serve(t, p.server, echoPort, onehost.Echo)
	p.envoy = newEnvoy(t, p.wp)
	listeners, clusters := p.waypoint(issue(t, p.wp), http2, destination{"service", p.service, echo, true})
	listeners = append(listeners, object{
		"name": "front", "address": socketAddress(p.front),
		"filter_chains": []object{{"filters": []object{typed("tcp", tcpProxyType, object{"stat_prefix": "front", "cluster": "service"})}}},
	})
	p.start(t, listeners, clusters)
	putService(t, m, "istio.io/use-waypoint: wp")
	putWaypoint(t, m, p.wp, "all")
	if err := m.WaitPods(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the service is reached by way of Envoy", func() error {
		if err := echoed(p.client, p.service, 5); err != nil {
			return err
		}
		if p.stat(t, "http.terminate.downstream_rq_total") == 0 {
			return errors.New("Envoy was not asked")
		}
		return nil
	})
	return p
}

// TestClient: Envoy opens the tunnels and Warren serves them.
func TestClient(t *testing.T) {
	p := newPeers(t, nil)
	t.Run("many streams", func(t *testing.T) {
		before := p.stat(t, "cluster.hbone.upstream_cx_total")
		if err := all(500, func(i int) error { return echoed(p.wp, p.front, int64(i)*100) }); err != nil {
			t.Fatal(err)
		}
		if made := p.stat(t, "cluster.hbone.upstream_cx_total") - before; made > 20 {
			t.Errorf("%d connections for 500 streams", made)
		}
	})
	t.Run("bulk", func(t *testing.T) {
		if err := all(8, func(i int) error { return echoed(p.wp, p.front, int64(i+1)<<22) }); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("slow reader", func(t *testing.T) {
		slow := mustDial(t, p.wp, p.front)
		go io.Copy(slow, io.LimitReader(rand.NewChaCha8([32]byte{}), 64<<20)) // ends with slow
		if err := all(8, func(int) error { return echoed(p.wp, p.front, 1<<22) }); err != nil {
			t.Fatal(err)
		}
	})
	noErrors(t, p)
}

// TestServer: Warren opens the tunnels and Envoy serves them.
func TestServer(t *testing.T) {
	p := newPeers(t, object{"max_concurrent_streams": 5})
	t.Run("few streams a connection", func(t *testing.T) {
		if err := all(100, func(i int) error { return echoed(p.client, p.service, int64(i)*1000) }); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("bulk", func(t *testing.T) {
		if err := all(8, func(i int) error { return echoed(p.client, p.service, int64(i+1)<<22) }); err != nil {
			t.Fatal(err)
		}
	})
	noErrors(t, p)
	t.Run("drain", func(t *testing.T) {
		kept := mustDial(t, p.client, p.service)
		say(t, kept, "before")
		if _, err := p.admin(http.MethodPost, "/drain_listeners?graceful&skip_exit"); err != nil {
			t.Fatal(err)
		}
		if err := all(50, func(i int) error { return echoed(p.client, p.service, int64(i)) }); err != nil {
			t.Error(err)
		}
		say(t, kept, "after")
	})
	t.Run("killed", func(t *testing.T) {
		mark := p.AccessLogs()
		cut := mustDial(t, p.client, p.service)
		say(t, cut, "before")
		p.kill(t)
		if _, err := io.ReadAll(cut); err == nil {
			t.Log("the application sees an end, no reset")
		}
		eventually(t, "the proxy says why", func() error {
			lines, err := mark.Lines()
			if err != nil {
				return err
			}
			for _, l := range lines {
				if l.Direction == "outbound" && l.Err != "" {
					t.Log(l.Err)
					return nil
				}
			}
			return fmt.Errorf("only %+v", lines)
		})
		if err := echoed(p.client, p.service, 1); err == nil {
			t.Error("answered by a waypoint that is gone")
		}
	})
}

// say sends a line to an echo and reads it back.
func say(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, []byte(text)) {
		t.Fatalf("%q, %v", got, err)
	}
}

// noErrors holds against Envoy that it found nothing wrong with a peer's frames.
func noErrors(t *testing.T, p *peers) {
	t.Helper()
	text, err := p.admin(http.MethodGet, "/stats?usedonly")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		for _, bad := range []string{"protocol_error", "messaging_error", "header_overflow", "flood", "ssl.fail", "requests_rejected"} {
			if strings.Contains(line, bad) {
				t.Error(strings.TrimSpace(line))
			}
		}
	}
}
