package podns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

const patient = 30 * time.Second

// pair is a connection with both of its ends.
type pair struct{ dialled, accepted net.Conn }

func connect(t *testing.T, from *nstest.Pod, l net.Listener, to netip.Addr) pair {
	t.Helper()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	dialled, err := from.Dial(t.Context(), "tcp", netip.AddrPortFrom(to, port).String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return pair{dialled, accepted}
}

func listenIn(t *testing.T, ns *netns.NS, addr string, mark int) net.Listener {
	t.Helper()
	var l net.Listener
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) }), err)
	}}
	err := ns.Do(func() (err error) {
		l, err = c.Listen(context.Background(), "tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func addrOf(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// ends are those of a connection's end in the pod.
func ends(c net.Conn) [2]netip.AddrPort {
	return [2]netip.AddrPort{addrOf(c.LocalAddr()), addrOf(c.RemoteAddr())}
}

func TestConnections(t *testing.T) {
	nstest.LeakCheck(t)
	node := nstest.New(t).Node("n")
	pod, peer := node.Pod("pod"), node.Pod("peer")
	app := listenIn(t, pod.NS, "[::]:8080", 0) // its IPv4 connections are of IPv6 sockets
	app4 := listenIn(t, pod.NS, pod.IP4.String()+":8084", 0)
	proxy := listenIn(t, pod.NS, "[::]:15008", redirect.MarkProxy)
	theirs := listenIn(t, peer.NS, "[::]:8080", 0)

	in6, in4, in44 := connect(t, peer, app, pod.IP6), connect(t, peer, app, pod.IP4), connect(t, peer, app4, pod.IP4)
	out6, out4 := connect(t, pod, theirs, peer.IP6), connect(t, pod, theirs, peer.IP4)
	half := connect(t, pod, theirs, peer.IP4)
	half.dialled.(*net.TCPConn).CloseWrite()
	connect(t, peer, proxy, pod.IP4)                       // the proxy's
	connect(t, pod, app, pod.IP4)                          // the pod's own
	connect(t, pod, app, netip.MustParseAddr("127.0.0.1")) // and by loopback
	connect(t, pod, app, netip.IPv6Loopback())             // in IPv6
	over := connect(t, peer, app, pod.IP4)                 // has ended
	over.dialled.Close()
	if _, err := io.Copy(io.Discard, over.accepted); err != nil {
		t.Fatal(err)
	}
	over.accepted.Close()

	want := map[[2]netip.AddrPort]bool{ // inbound
		ends(in6.accepted): true, ends(in4.accepted): true, ends(in44.accepted): true,
		ends(out6.dialled): false, ends(out4.dialled): false, ends(half.dialled): false,
	}
	all, more, err := Connections(pod.NS)
	if err != nil || more != 0 {
		t.Fatal(more, err)
	}
	// One that is over may still be waiting for the last acknowledgement.
	all = slices.DeleteFunc(all, func(c Conn) bool { return [2]netip.AddrPort{c.Local, c.Remote} == ends(over.accepted) })
	for _, c := range all {
		inbound, ok := want[[2]netip.AddrPort{c.Local, c.Remote}]
		if !ok || inbound != c.Inbound || c.Cookie == 0 {
			t.Errorf("unexpected %+v", c)
		}
	}
	if len(all) != len(want) {
		t.Errorf("%d connections, want %d: %+v", len(all), len(want), all)
	}

	in4.dialled.Close()
	in4.accepted.Close()
	for deadline := time.Now().Add(patient); ; time.Sleep(time.Millisecond) {
		alive, err := Alive(pod.NS, all)
		if err != nil {
			t.Fatal(err)
		}
		if len(alive) == len(all)-1 && !slices.ContainsFunc(alive, func(c Conn) bool { return c.Remote == addrOf(in4.dialled.LocalAddr()) }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("one of %d has ended, %d are alive", len(all), len(alive))
		}
	}
}

// TestCarriedConnections: with rules in place, what the proxy has accepted or made is
// not outside of the mesh, on the application's side either.
func TestCarriedConnections(t *testing.T) {
	nstest.LeakCheck(t)
	node := nstest.New(t).Node("n")
	pod, peer := node.Pod("pod"), node.Pod("peer")
	app := listenIn(t, pod.NS, "[::]:8080", 0)
	theirs := listenIn(t, peer.NS, "[::]:8080", 0)
	outbound := listenIn(t, pod.NS, "[::]:15001", redirect.MarkProxy)
	before := []pair{connect(t, peer, app, pod.IP4), connect(t, pod, theirs, peer.IP4)}
	b, err := redirect.Named(redirect.NameNFTables)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Apply(pod.NS, redirect.Defaults()); err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.Addr{peer.IP4, peer.IP6} { // captured on its way out
		dialled, err := pod.Dial(t.Context(), "tcp", netip.AddrPortFrom(to, 8080).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dialled.Close() })
		accepted, err := outbound.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { accepted.Close() })
	}
	// Brought in by the proxy, which has the client's address.
	var in net.Conn
	err = pod.NS.Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: peer.IP4.AsSlice(), Port: 4711}, Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			return errors.Join(raw.Control(func(fd uintptr) {
				err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, redirect.MarkProxy),
					unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1))
			}), err)
		}}
		in, err = d.DialContext(t.Context(), "tcp4", netip.AddrPortFrom(pod.IP4, 8080).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	accepted, err := app.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if got := addrOf(accepted.RemoteAddr()); got != netip.AddrPortFrom(peer.IP4, 4711) {
		t.Fatalf("the application sees %s", got)
	}

	if n, err := Carried(pod.NS); err != nil || n != 3 {
		t.Errorf("%d are carried, %v; want two out and one in", n, err)
	}
	all, _, err := Connections(pod.NS)
	if err != nil {
		t.Fatal(err)
	}
	want := map[[2]netip.AddrPort]bool{ends(before[0].accepted): true, ends(before[1].dialled): true}
	for _, c := range all {
		if !want[[2]netip.AddrPort{c.Local, c.Remote}] {
			t.Errorf("%+v is carried", c)
		}
	}
	if len(all) != len(want) {
		t.Errorf("%d are outside, want %d", len(all), len(want))
	}
	in.Close()
	accepted.Close()
	for deadline := time.Now().Add(patient); ; time.Sleep(time.Millisecond) {
		if n, err := Carried(pod.NS); err != nil || n == 2 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%d are carried, %v; one of three has ended", n, err)
		}
	}
}

// Another connection of the same ends is another.
func TestAliveGoesByTheSocket(t *testing.T) {
	nstest.LeakCheck(t)
	node := nstest.New(t).Node("n")
	pod, peer := node.Pod("pod"), node.Pod("peer")
	app := listenIn(t, pod.NS, "[::]:8080", 0)
	connect(t, peer, app, pod.IP4)
	all, _, err := Connections(pod.NS)
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	all[0].Cookie++
	if alive, err := Alive(pod.NS, all); err != nil || len(alive) != 0 {
		t.Errorf("alive %+v, %v", alive, err)
	}
	if left, err := End(pod.NS, all); err != nil || len(left) != 0 {
		t.Errorf("left %+v, %v", left, err)
	}
}

func TestEnd(t *testing.T) {
	nstest.LeakCheck(t)
	node := nstest.New(t).Node("n")
	pod, peer := node.Pod("pod"), node.Pod("peer")
	app := listenIn(t, pod.NS, "[::]:8080", 0)
	app4 := listenIn(t, pod.NS, pod.IP4.String()+":8084", 0)
	theirs := listenIn(t, peer.NS, "[::]:8080", 0)
	ended := []pair{connect(t, peer, app, pod.IP6), connect(t, peer, app, pod.IP4), connect(t, peer, app4, pod.IP4)}
	kept := connect(t, pod, theirs, peer.IP4)
	// Rules or none: the reset reaches the peer.
	b, err := redirect.Named(redirect.NameNFTables)
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := Connections(pod.NS)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Apply(pod.NS, redirect.Defaults()); err != nil {
		t.Fatal(err)
	}
	inbound := slices.DeleteFunc(slices.Clone(all), func(c Conn) bool { return !c.Inbound })
	if len(inbound) != len(ended) {
		t.Fatalf("%d inbound connections, want %d: %+v", len(inbound), len(ended), all)
	}
	left, err := End(pod.NS, inbound)
	if errors.Is(err, ErrCannotEnd) {
		nstest.Need(t, err)
	}
	if err != nil || len(left) != 0 {
		t.Fatalf("left %+v, %v", left, err)
	}
	for _, p := range ended {
		for _, c := range []net.Conn{p.dialled, p.accepted} {
			c.SetReadDeadline(time.Now().Add(patient))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNABORTED) {
				t.Errorf("%s to %s: %v, want a reset", c.LocalAddr(), c.RemoteAddr(), err)
			}
		}
	}
	if alive, err := Alive(pod.NS, all); err != nil || len(alive) != 1 || alive[0].Local != addrOf(kept.dialled.LocalAddr()) {
		t.Errorf("alive %+v, %v", alive, err)
	}
	if left, err := End(pod.NS, inbound); err != nil || len(left) != 0 { // they are gone
		t.Errorf("ended again: left %+v, %v", left, err)
	}
}

func TestNamespaceIsGone(t *testing.T) {
	ns, _ := nstest.NewNS(t, "gone")
	gone, err := ns.Dup()
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	some := []Conn{{Cookie: 1}}
	if _, _, err := Connections(gone); err == nil {
		t.Error("no error of Connections")
	}
	if _, err := Alive(gone, some); err == nil {
		t.Error("no error of Alive")
	}
	if left, err := End(gone, some); err == nil || len(left) != 1 {
		t.Errorf("End: %v, %v", left, err)
	}
	if _, err := Alive(gone, nil); err != nil {
		t.Error("nothing is asked, and it fails: ", err)
	}
}

func FuzzReadSocket(f *testing.F) {
	msg := make([]byte, sizeofMessage+8)
	msg[0], msg[1] = afInet6, 1
	binary.NativeEndian.PutUint16(msg[sizeofMessage:], 8)
	binary.NativeEndian.PutUint16(msg[sizeofMessage+2:], attrMark)
	f.Add(msg)
	f.Add(msg[:sizeofMessage])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) { readSocket(msg) })
}

func BenchmarkConnections(b *testing.B) {
	ns, _ := nstest.NewNS(b, "pod")
	for b.Loop() {
		if _, _, err := Connections(ns); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFind(b *testing.B) {
	f := New("/proc")
	for b.Loop() {
		if _, err := f.Find(b.Context(), []Wanted{{UID: uidA}}); err != nil {
			b.Fatal(err)
		}
	}
}
