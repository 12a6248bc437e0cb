package sockopt_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/proxy/sockopt"
)

func TestDialPacket(t *testing.T) {
	nstest.LeakCheck(t)
	node := nstest.New(t).Node("n")
	a, b := node.Pod("a"), node.Pod("b")
	s := inPod(t, a, sockopt.Defaults())
	for _, tt := range []struct{ src, dst netip.Addr }{{a.IP4, b.IP4}, {a.IP6, b.IP6}} {
		l, err := inPod(t, b, sockopt.Defaults()).ListenPacket(t.Context(), netip.AddrPortFrom(tt.dst, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := s.DialPacket(netip.AddrPortFrom(tt.dst, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		check(t, c, want{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, 0x539})
		if !closesOnExec(t, c) {
			t.Error("children would inherit the socket")
		}
		if _, err := c.Write([]byte("query")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 16)
		n, from, err := l.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != "query" || from.Addr().Unmap() != tt.src {
			t.Errorf("got %q from %s, %v", buf[:n], from, err)
		}
	}
	// Nobody there is told, which only a connected socket is.
	c, err := s.DialPacket(netip.AddrPortFrom(b.IP4, 54))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("read: %v, want refused", err)
	}
}

// Of each redirected packet the namespace's conntrack knows where it was sent.
func TestOriginalPacketDst(t *testing.T) {
	nstest.LeakCheck(t)
	pod := nstest.New(t).Node("n").Pod("p")
	s := inPod(t, pod, sockopt.Defaults())
	for _, tt := range []struct{ iptables, at, dst, other string }{
		{"iptables", "127.0.0.1:15053", "192.0.2.53:53", "192.0.2.54:53"},
		{"ip6tables", "[::1]:15053", "[2001:db8::53]:53", "[2001:db8::54]:53"},
	} {
		t.Run(tt.iptables, func(t *testing.T) {
			run(t, pod.NS, tt.iptables, "-t", "nat", "-A", "OUTPUT", "-p", "udp", "--dport", "53", "-j", "REDIRECT", "--to-ports", "15053")
			l, err := s.ListenPacket(t.Context(), netip.MustParseAddrPort(tt.at))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			sent := func(dst string) netip.AddrPort {
				t.Helper()
				c, err := pod.Dial(t.Context(), "udp", dst)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				_, from, err := l.ReadFromUDPAddrPort(make([]byte, 16))
				if err != nil {
					t.Fatal(err)
				}
				return from
			}
			at := l.LocalAddr().(*net.UDPAddr).AddrPort()
			first, second := sent(tt.dst), sent(tt.other) // both flows at once
			for from, dst := range map[netip.AddrPort]string{first: tt.dst, second: tt.other, sent(tt.at): tt.at} {
				if got, err := s.OriginalPacketDst(from, at); err != nil || got.String() != dst {
					t.Errorf("OriginalPacketDst(%s) = %s, %v; want %s", from, got, err, dst)
				}
			}
			if _, err := s.OriginalPacketDst(netip.AddrPortFrom(first.Addr(), 1), at); !errors.Is(err, sockopt.ErrUntracked) {
				t.Errorf("of nobody: %v", err)
			}
		})
	}
	s.Close()
	if _, err := s.OriginalPacketDst(netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")); err == nil {
		t.Error("of a namespace that is gone")
	}
}

// Of two sockets that share an address the deaf one gets nothing more, and still
// speaks from it.
func TestDeafen(t *testing.T) {
	nstest.LeakCheck(t)
	pod := nstest.New(t).Node("n").Pod("p")
	s := inPod(t, pod, sockopt.Defaults())
	for _, at := range []string{"127.0.0.1:15053", "[::1]:15053"} {
		addr := netip.MustParseAddrPort(at)
		var pair [2]*net.UDPConn
		for i := range pair {
			c, err := s.ListenPacket(t.Context(), addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			pair[i] = c
		}
		old, heir := pair[0], pair[1]
		first, err := pod.Dial(t.Context(), "udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		if err := sockopt.Deafen(old); err != nil {
			t.Fatal(err)
		}
		const n = 64 // of as many sources: half of them would be the old one's
		for range n {
			c, err := pod.Dial(t.Context(), "udp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		_ = heir.SetReadDeadline(time.Now().Add(20 * time.Second))
		for range n {
			if _, _, err := heir.ReadFromUDPAddrPort(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := old.WriteToUDPAddrPort([]byte("answer"), first.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 16)
		if k, err := first.Read(buf); err != nil || string(buf[:k]) != "answer" {
			t.Errorf("%q, %v", buf[:k], err)
		}
	}
}
