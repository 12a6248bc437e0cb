package onehost_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

func serve(t *testing.T, p *onehost.Pod, port int, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	s, err := p.Serve(port, handle)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return netip.AddrPortFrom(p.IP4(), uint16(port))
}

func dial(t *testing.T, p *onehost.Pod, dst netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := p.Dial(testContext(t), dst)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

// roundTrip sends a line through an echo and expects it back.
func roundTrip(p *onehost.Pod, dst netip.AddrPort, text string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	c, err := p.Dial(ctx, dst)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(8 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("echo: got %q, want %q", got, text)
	}
	return nil
}

func mustEcho(t *testing.T, p *onehost.Pod, dst netip.AddrPort) {
	t.Helper()
	if err := roundTrip(p, dst, "hello"); err != nil {
		t.Fatalf("%s → %s: %v", p.Spec.Name, dst, err)
	}
}

func mustRefuse(t *testing.T, p *onehost.Pod, dst netip.AddrPort) {
	t.Helper()
	switch err := roundTrip(p, dst, "hello"); {
	case err == nil:
		t.Fatalf("%s → %s was carried, but must be refused", p.Spec.Name, dst)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		t.Fatalf("%s → %s: nobody refused it: %v", p.Spec.Name, dst, err)
	}
}

// TestPaths sends one connection over every kind of path, and holds against
// it which proxies reported it, with whose identities, and what the wire saw.
func TestPaths(t *testing.T) {
	m := sharedMesh(t)
	a := addPod(t, m.Nodes[0], "app", "a", nil)
	near := addPod(t, m.Nodes[0], "app", "b", nil)
	far := addPod(t, m.Nodes[1], "app", "b", nil)
	oldNear := addPod(t, m.Nodes[0], "plain", "old", nil)
	oldFar := addPod(t, m.Nodes[1], "plain", "old", nil)
	for _, p := range []*onehost.Pod{near, far, oldNear, oldFar} {
		echo(t, p, 7)
	}
	waitPods(t, m)
	const idA, idB = "spiffe://cluster.local/ns/app/sa/a", "spiffe://cluster.local/ns/app/sa/b"
	for _, tc := range []struct {
		name       string
		from, to   *onehost.Pod
		v6         bool
		directions []string
		src, dst   string // identities in every line
		tls, plain bool   // what crosses the bridge
	}{
		{name: "captured to captured across nodes", from: a, to: far, directions: []string{"outbound", "inbound"}, src: idA, dst: idB, tls: true},
		{name: "captured to captured across nodes, IPv6", from: a, to: far, v6: true, directions: []string{"outbound", "inbound"}, src: idA, dst: idB, tls: true},
		{name: "captured to captured on one node", from: a, to: near, directions: []string{"outbound", "inbound"}, src: idA, dst: idB},
		{name: "captured to captured on one node, IPv6", from: a, to: near, v6: true, directions: []string{"outbound", "inbound"}, src: idA, dst: idB},
		{name: "captured to outside across nodes", from: a, to: oldFar, directions: []string{"outbound"}, plain: true},
		{name: "captured to outside, IPv6", from: a, to: oldFar, v6: true, directions: []string{"outbound"}, plain: true},
		{name: "outside to captured across nodes", from: oldNear, to: far, directions: []string{"inbound"}, plain: true},
		{name: "outside to captured on one node", from: oldNear, to: near, directions: []string{"inbound"}},
		{name: "outside to outside", from: oldNear, to: oldFar, plain: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dst := netip.AddrPortFrom(tc.to.IP4(), 7)
			if tc.v6 {
				dst = netip.AddrPortFrom(tc.to.IP6(), 7)
			}
			const secret = "can-you-read-this"
			if err := m.Capture.Quiet(testContext(t), 30*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			m.Capture.Mark(secret)
			before, logs := m.Capture.Counts(), m.AccessLogs()
			if err := roundTrip(tc.from, dst, secret); err != nil {
				t.Fatal(err)
			}
			lines, err := logs.Wait(testContext(t), tc.from.IPs, tc.to.IPs, tc.directions)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range lines {
				if l.SrcIdentity != tc.src || l.DstIdentity != tc.dst {
					t.Errorf("%s line: identities %q → %q, want %q → %q", l.Direction, l.SrcIdentity, l.DstIdentity, tc.src, tc.dst)
				}
				if n := int64(len(secret)); l.BytesSent != n || l.BytesRecv != n {
					t.Errorf("%s line: %d sent, %d received, want %d each", l.Direction, l.BytesSent, l.BytesRecv, n)
				}
				if l.Err != "" {
					t.Errorf("%s line: error %q", l.Direction, l.Err)
				}
			}
			eventually(t, 5*time.Second, "capture", func() error {
				c := m.Capture.Counts().Since(before)
				if tc.tls != (c.TLS > 0) || tc.plain != (c.OtherTCP > 0) || tc.plain != (c.Marker > 0) || c.NotTLS > 0 {
					return fmt.Errorf("the bridge saw %+v", c)
				}
				return nil
			})
		})
	}
}

func TestServiceSpreadsOverEndpoints(t *testing.T) {
	m := sharedMesh(t)
	client := addPod(t, m.Nodes[0], "app", "client", nil)
	labels := map[string]string{"app": "spread"}
	backends := []*onehost.Pod{addPod(t, m.Nodes[0], "app", "web", labels), addPod(t, m.Nodes[1], "app", "web", labels)}
	vip := netip.MustParseAddrPort("10.96.0.20:80")
	if err := m.PutService("app", "spread", vip, 8080, labels); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Remove("Service", "app", "spread") })
	for _, b := range backends {
		name := b.Spec.Name
		serve(t, b, 8080, func(c *net.TCPConn) { io.WriteString(c, name) })
	}
	waitPods(t, m)
	seen := make(map[string]int)
	eventually(t, 10*time.Second, "both endpoints answer", func() error {
		c, err := client.Dial(testContext(t), vip)
		if err != nil {
			return err
		}
		defer c.Close()
		name, err := io.ReadAll(c)
		if err != nil {
			return err
		}
		seen[string(name)]++
		if seen[backends[0].Spec.Name] < 3 || seen[backends[1].Spec.Name] < 3 {
			return fmt.Errorf("so far: %v", seen)
		}
		return nil
	})
}

// TestHalfClose ends one direction while the other still carries, both ways
// round. A proxy that takes FIN for the end of the connection loses the rest.
func TestHalfClose(t *testing.T) {
	m := sharedMesh(t)
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	late := bytes.Repeat([]byte("late"), 50_000)
	clientFirst := serve(t, server, 7, func(c *net.TCPConn) {
		if got, err := io.ReadAll(c); err == nil && string(got) == "early" {
			c.Write(late)
		}
	})
	gotLate := make(chan []byte, 1)
	serverFirst := serve(t, server, 8, func(c *net.TCPConn) {
		c.Write([]byte("early"))
		c.CloseWrite()
		got, _ := io.ReadAll(c)
		gotLate <- got
	})
	waitPods(t, m)
	t.Run("client first", func(t *testing.T) {
		c := dial(t, client, clientFirst)
		c.Write([]byte("early"))
		c.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, late) {
			t.Fatalf("after half-close: %d bytes, %v; want %d", len(got), err, len(late))
		}
	})
	t.Run("server first", func(t *testing.T) {
		c := dial(t, client, serverFirst)
		if got, err := io.ReadAll(c); err != nil || string(got) != "early" {
			t.Fatalf("until the server's FIN: %q, %v", got, err)
		}
		c.Write(late)
		c.CloseWrite()
		select {
		case got := <-gotLate:
			if !bytes.Equal(got, late) {
				t.Fatalf("server received %d bytes after its FIN, want %d", len(got), len(late))
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the server's read did not end")
		}
	})
}

// pattern is a reader of n reproducible bytes.
func pattern(n int64, seed uint64) io.Reader {
	var key [32]byte
	key[0] = byte(seed)
	return io.LimitReader(rand.NewChaCha8(key), n)
}

func TestGiBEachWay(t *testing.T) {
	const size = 1 << 30
	m := sharedMesh(t)
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	sums := make(chan uint32, 1)
	dst := serve(t, server, 7, func(c *net.TCPConn) {
		var wg sync.WaitGroup
		wg.Go(func() {
			io.Copy(c, pattern(size, 2))
			c.CloseWrite()
		})
		h := crc32.NewIEEE()
		io.Copy(h, c)
		wg.Wait()
		sums <- h.Sum32()
	})
	waitPods(t, m)
	want := func(seed uint64) uint32 {
		h := crc32.NewIEEE()
		io.Copy(h, pattern(size, seed))
		return h.Sum32()
	}
	c := dial(t, client, dst)
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	var wg sync.WaitGroup
	var down uint32
	var n int64
	var err error
	wg.Go(func() {
		h := crc32.NewIEEE()
		n, err = io.Copy(h, c)
		down = h.Sum32()
	})
	if _, err := io.Copy(c, pattern(size, 1)); err != nil {
		t.Fatalf("send: %v", err)
	}
	c.CloseWrite()
	wg.Wait()
	if err != nil || n != size || down != want(2) {
		t.Errorf("down: %d bytes, sum %x, %v; want %d, %x", n, down, err, size, want(2))
	}
	if up := <-sums; up != want(1) {
		t.Errorf("up: sum %x, want %x", up, want(1))
	}
}

func TestOneByteWrites(t *testing.T) {
	m := sharedMesh(t)
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	dst := echo(t, server, 7)
	waitPods(t, m)
	c := dial(t, client, dst)
	want := make([]byte, 64<<10)
	io.ReadFull(pattern(int64(len(want)), 3), want)
	go func() {
		for i := range want {
			if _, err := c.Write(want[i : i+1]); err != nil {
				return
			}
		}
		c.CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes, %v; want %d as sent", len(got), err, len(want))
	}
}

func TestThousandConnections(t *testing.T) {
	const conns = 1000
	m := sharedMesh(t)
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	dst := echo(t, server, 7)
	waitPods(t, m)
	mustEcho(t, client, dst)
	before := settled(t, m)
	open := make([]*net.TCPConn, conns)
	var wg sync.WaitGroup
	errs := make(chan error, conns)
	gate := make(chan struct{}, 64) // at most so many in the middle of connecting: each holds a thread here
	for i := range open {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			c, err := client.Dial(ctx, dst)
			if err != nil {
				errs <- err
				return
			}
			open[i] = c
			c.SetDeadline(time.Now().Add(30 * time.Second))
			text := fmt.Sprintf("%04d", i)
			buf := make([]byte, len(text))
			if _, err := io.WriteString(c, text); err != nil {
				errs <- err
			} else if _, err := io.ReadFull(c, buf); err != nil {
				errs <- fmt.Errorf("connection %d: %w", i, err)
			} else if string(buf) != text {
				errs <- fmt.Errorf("connection %d got %q", i, buf)
			}
		})
	}
	wg.Wait()
	close(errs)
	failed := 0
	for err := range errs {
		if failed++; failed <= 3 {
			t.Error(err)
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d connections failed", failed, conns)
	}
	for _, c := range open {
		if c != nil {
			c.Close()
		}
	}
	noLeak(t, m, before)
}

// TestSlowReaderBesideFast leaves eight readers stalled on one tunnel; the
// ninth must be served as if they were not there, and they lose nothing.
func TestSlowReaderBesideFast(t *testing.T) {
	const size, stalled = 16 << 20, 8
	m := sharedMesh(t)
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	dst := serve(t, server, 7, func(c *net.TCPConn) { io.Copy(c, pattern(size, 4)) })
	waitPods(t, m)
	var slow []*net.TCPConn
	for range stalled {
		c := dial(t, client, dst)
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, c)
	}
	if n, err := io.Copy(io.Discard, dial(t, client, dst)); err != nil || n != size {
		t.Fatalf("beside stalled readers: %d of %d bytes, %v", n, size, err)
	}
	for _, c := range slow {
		if n, err := io.Copy(io.Discard, c); err != nil || n != size-1 {
			t.Fatalf("a stalled reader, resumed: %d of %d bytes, %v", n, size-1, err)
		}
	}
}

// TestResetIsNotFIN closes with an RST, which must not reach the far side as
// a clean end of the stream.
func TestResetIsNotFIN(t *testing.T) {
	m := sharedMesh(t)
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	ends := make(chan error, 1)
	started := make(chan struct{}, 1)
	dst := serve(t, server, 7, func(c *net.TCPConn) {
		buf := make([]byte, 5)
		io.ReadFull(c, buf)
		started <- struct{}{}
		_, err := c.Read(buf)
		ends <- err
	})
	waitPods(t, m)
	c := dial(t, client, dst)
	c.Write([]byte("hello"))
	<-started
	c.SetLinger(0)
	c.Close()
	select {
	case err := <-ends:
		if err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "reset") {
			t.Fatalf("the server's read ended with %v, want a reset", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the server's read did not end")
	}
}

// TestNothingListens connects to a port without a server: the client must
// see a failure, not a connection that stays silent.
func TestNothingListens(t *testing.T) {
	m := sharedMesh(t)
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	waitPods(t, m)
	mustRefuse(t, client, netip.AddrPortFrom(server.IP4(), 9))
}
