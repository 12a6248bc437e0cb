package sockopt_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/proxy/sockopt"
)

// A client's connections from before its peer's enrolment are on ports that the kernel
// takes for free when the proxy connects with the client's address: such a connection is
// made all the same, and theirs go on. Rules are the real ones.
func TestConnectLocalBesideConnectionsOfBefore(t *testing.T) {
	nstest.LeakCheck(t)
	node := nstest.New(t).Node("n")
	client, server := node.Pod("client"), node.Pod("server")
	backend, err := redirect.Detect()
	if err != nil {
		nstest.Need(t, err)
	}
	l, err := server.Listen("tcp4", netip.AddrPortFrom(server.IP4, 8080).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dst := l.Addr().(*net.TCPAddr).AddrPort()
	// The kernel gives a connect the even ones of these, of which the client has all.
	run(t, server.NS, "sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40007")
	var before, theirs []net.Conn
	for port := 40000; port < 40008; port += 2 {
		c, err := dialFrom(t, client, port, dst)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		before, theirs = append(before, c), append(theirs, far)
	}
	if err := backend.Apply(server.NS, redirect.Config{IPv4: true}); err != nil {
		t.Fatal(err)
	}
	cfg := sockopt.Defaults()
	cfg.Mark = redirect.MarkProxy
	cfg.ConnectTimeout = time.Second
	s := inPod(t, server, cfg)
	// Nothing was sent on them since the rules came: conntrack knows them from the agent.
	if c, err := s.Connect(t.Context(), client.IP4, dst); err == nil {
		_ = c.Close()
		t.Fatal("a connection was made in the place of one of the client's own, or on a port of no client's")
	}
	for i := range 3 {
		ch := accept(l)
		c, err := pollable(s.ConnectLocal(t.Context(), client.IP4, dst))
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
		far := <-ch
		defer far.Close()
		if from := far.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); from != client.IP4 {
			t.Errorf("the application sees %s, want %s", from, client.IP4)
		}
		talk(t, c, far)
	}
	for i := range before {
		talk(t, before[i], theirs[i])
		talk(t, theirs[i], before[i])
	}
	// When one has ended the client may use its port again, for a connection that is
	// redirected like any other.
	captured, err := server.Listen("tcp4", netip.AddrPortFrom(server.IP4, redirect.PortInbound).String())
	if err != nil {
		t.Fatal(err)
	}
	defer captured.Close()
	if err := errors.Join(theirs[0].Close(), before[0].Close()); err != nil {
		t.Fatal(err)
	}
	ch := accept(captured)
	again, err := dialFrom(t, client, 40000, dst)
	if err != nil {
		t.Fatalf("from the port of one that has ended: %v", err)
	}
	defer again.Close()
	far := <-ch
	defer far.Close()
	talk(t, again, far)
}

// dialFrom connects from a port of a pod.
func dialFrom(t *testing.T, p *nstest.Pod, port int, dst netip.AddrPort) (c net.Conn, err error) {
	t.Helper()
	err = p.NS.Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: p.IP4.AsSlice(), Port: port}, Timeout: 20 * time.Second}
		c, err = d.DialContext(t.Context(), "tcp4", dst.String())
		return err
	})
	return c, err
}

// talk sends something from one end to the other.
func talk(t *testing.T, from, to net.Conn) {
	t.Helper()
	text := fmt.Sprint(from.LocalAddr())
	if _, err := from.Write([]byte(text)); err != nil {
		t.Errorf("%s to %s: %v", from.LocalAddr(), from.RemoteAddr(), err)
		return
	}
	if err := to.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if n, err := to.Read(got); err != nil || string(got[:n]) != text {
		t.Errorf("%s to %s: read %q, %v", from.LocalAddr(), from.RemoteAddr(), got[:n], err)
	}
}
