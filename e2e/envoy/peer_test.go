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
	"os"
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

const echoPort, resetPort, frontPort = 7, 8, 9000

func newPeers(t *testing.T, say terms) *peers {
	t.Helper()
	m := newMesh(t, onehost.Options{})
	p := &peers{Mesh: m, client: addPod(t, m.Nodes[0], "client", nil), server: addPod(t, m.Nodes[1], "server", map[string]string{"app": "web"}),
		wp: addWaypoint(t, m.Nodes[0], "wp"), service: netip.MustParseAddrPort(vip + ":80")}
	p.front = netip.AddrPortFrom(p.wp.IP4(), frontPort)
	echo := serve(t, p.server, echoPort, onehost.Echo)
	p.envoy = newEnvoy(t, p.wp)
	listeners, clusters := p.waypoint(issue(t, p.wp), say,
		destination{"service", p.service, echo, true}, destination{"resets", netip.MustParseAddrPort(vip + ":81"), netip.AddrPortFrom(echo.Addr(), resetPort), true})
	for port, cluster := range map[uint16]string{frontPort: "service", frontPort + 1: "resets"} {
		listeners = append(listeners, object{
			"name": "front " + cluster, "address": socketAddress(netip.AddrPortFrom(p.wp.IP4(), port)),
			"filter_chains": []object{{"filters": []object{typed("tcp", tcpProxyType, object{"stat_prefix": "front", "cluster": cluster})}}},
		})
	}
	p.start(t, listeners, clusters)
	putService(t, m, "istio.io/use-waypoint: wp")
	putWaypoint(t, m, p.wp, "all", "")
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
	p := newPeers(t, terms{})
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
	t.Run("slow reader", func(t *testing.T) { slowReader(t, p.wp, p.front) })
	t.Run("reset", func(t *testing.T) { resets(t, p, p.wp, p.front) })
	noErrors(t, p) // before the drain: Envoy closes in the midst of a GOAWAY, and counts that
	t.Run("drain", func(t *testing.T) {
		kept := mustDial(t, p.wp, p.front)
		say(t, kept, "before")
		before := p.stat(t, "cluster.hbone.upstream_cx_close_notify")
		stopped := make(chan error, 1)
		go func() { stopped <- p.Nodes[1].StopProxy() }()
		eventually(t, "Envoy has got GOAWAY", func() error {
			if p.stat(t, "cluster.hbone.upstream_cx_close_notify") == before {
				return errors.New("it has not")
			}
			return nil
		})
		say(t, kept, "after")
		if err := kept.CloseWrite(); err != nil {
			t.Error(err)
		}
		if rest, err := io.ReadAll(kept); err != nil || len(rest) > 0 {
			t.Errorf("%q, then %v", rest, err)
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if err := errors.Join(p.Nodes[1].StartProxy(t.Context()), p.Nodes[1].WaitProxyReady(t.Context())); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the next proxy serves Envoy", func() error { return echoed(p.wp, p.front, 1000) })
	})
}

// TestFewStreams: Envoy takes two streams on a connection, and nobody is refused for it.
func TestFewStreams(t *testing.T) {
	p := newPeers(t, terms{http2: object{"max_concurrent_streams": 2}})
	for range 3 {
		if err := all(50, func(i int) error { return echoed(p.client, p.service, int64(i)*1000) }); err != nil {
			t.Fatal(err)
		}
	}
	noErrors(t, p)
}

// TestGoAway: Envoy ends each connection after three streams, and no stream is lost to it.
func TestGoAway(t *testing.T) {
	p := newPeers(t, terms{requests: 3})
	for i := range 30 {
		if err := echoed(p.client, p.service, int64(i)*100); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if err := all(40, func(i int) error { return echoed(p.client, p.service, int64(i)*1000) }); err != nil {
			t.Fatal(err)
		}
	}
	noErrors(t, p)
}

// TestServer: Warren opens the tunnels and Envoy serves them.
func TestServer(t *testing.T) {
	p := newPeers(t, terms{status: map[string]int{vip + ":403": 403, vip + ":503": 503}})
	t.Run("many streams", func(t *testing.T) {
		if err := all(300, func(i int) error { return echoed(p.client, p.service, int64(i)*1000) }); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("bulk", func(t *testing.T) {
		if err := all(8, func(i int) error { return echoed(p.client, p.service, int64(i+1)<<22) }); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("slow reader", func(t *testing.T) { slowReader(t, p.client, p.service) })
	t.Run("reset", func(t *testing.T) { resets(t, p, p.client, p.service) })
	noErrors(t, p)
	for _, status := range []string{"403", "503"} {
		t.Run(status, func(t *testing.T) {
			mark := p.AccessLogs()
			if err := echoed(p.client, netip.MustParseAddrPort(vip+":"+status), 5); err == nil {
				t.Error("it was carried")
			}
			p.logged(t, mark, "outbound", "status: "+status)
		})
	}
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
		if _, err := io.ReadAll(cut); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the application waits for a peer that is gone")
		}
		p.logged(t, mark, "outbound", "tunnel lost")
		mark = p.AccessLogs()
		if err := echoed(p.client, p.service, 1); err == nil {
			t.Error("answered by a waypoint that is gone")
		}
		p.logged(t, mark, "outbound", "connection refused")
	})
}

// logged waits for a connection's line with that error.
func (p *peers) logged(t *testing.T, mark onehost.LogMark, direction, text string) {
	t.Helper()
	eventually(t, "a line says "+text, func() error {
		lines, err := mark.Lines()
		for _, l := range lines {
			if l.Direction == direction && strings.Contains(l.Err, text) {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("only %+v", lines))
	})
}

// slowReader has somebody fill both directions and read nothing: others go on beside that.
func slowReader(t *testing.T, from *onehost.Pod, to netip.AddrPort) {
	t.Helper()
	const size = 64 << 20
	slow := mustDial(t, from, to)
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(slow, rand.NewChaCha8([32]byte{}), size)
		sent <- errors.Join(err, slow.CloseWrite())
	}()
	if err := all(8, func(int) error { return echoed(from, to, 1<<22) }); err != nil {
		t.Error(err)
	}
	if n, err := io.Copy(io.Discard, slow); err != nil || n != size {
		t.Errorf("%d of %d bytes: %v", n, size, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// resets has the client, then the server, reset its end: the other one hears of it, and
// other streams do not.
func resets(t *testing.T, p *peers, from *onehost.Pod, to netip.AddrPort) {
	t.Helper()
	kept := mustDial(t, from, to)
	say(t, kept, "kept")
	ended := make(chan error, 1)
	serve(t, p.server, resetPort, func(c *net.TCPConn) {
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		if b[0] == 'r' {
			_ = c.SetLinger(0)
			return
		}
		_, _ = c.Write(b)
		_, err := io.ReadAll(c)
		ended <- err
	})
	to = netip.AddrPortFrom(to.Addr(), to.Port()+1)
	c := mustDial(t, from, to)
	say(t, c, "c")
	_ = c.SetLinger(0)
	_ = c.Close()
	select {
	case err := <-ended:
		t.Logf("the client's reset came as %v", err)
	case <-time.After(patience):
		t.Error("the server did not hear of the client's reset")
	}
	c = mustDial(t, from, to)
	if _, err := io.WriteString(c, "r"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the client did not hear of the server's reset")
	} else {
		t.Logf("the server's reset came as %v", err)
	}
	say(t, kept, "on")
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
