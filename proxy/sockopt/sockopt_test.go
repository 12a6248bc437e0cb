package sockopt_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/proxy/sockopt"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// inPod returns a maker of sockets in the pod.
func inPod(t *testing.T, p *nstest.Pod, cfg sockopt.Config) *sockopt.Sockets {
	t.Helper()
	ns, err := p.NS.Dup()
	if err != nil {
		t.Fatal(err)
	}
	s := sockopt.New(ns, cfg)
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func listen(t *testing.T, s *sockopt.Sockets, addr string) (l *net.TCPListener, transparent bool) {
	t.Helper()
	l, transparent, err := s.Listen(t.Context(), netip.MustParseAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, transparent
}

// accept takes one connection in the background.
func accept(l net.Listener) <-chan net.Conn {
	ch := make(chan net.Conn, 1)
	go func() {
		defer close(ch)
		if c, err := l.Accept(); err == nil {
			ch <- c
		}
	}()
	return ch
}

// connected returns both ends of a connection from the pod to l.
func connected(t *testing.T, p *nstest.Pod, l net.Listener, addr netip.Addr) (client, server *net.TCPConn) {
	t.Helper()
	ch := accept(l)
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	c, err := p.Dial(t.Context(), "tcp", netip.AddrPortFrom(addr, port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s := <-ch
	if s == nil {
		t.Fatal("nothing was accepted")
	}
	t.Cleanup(func() { s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func option(t *testing.T, c syscall.Conn, level, name int) (v int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), level, name) }), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

type want struct {
	name       string
	level, opt int
	value      int
}

func check(t *testing.T, c syscall.Conn, wants ...want) {
	t.Helper()
	for _, w := range wants {
		if got := option(t, c, w.level, w.opt); got != w.value {
			t.Errorf("%s is %d, want %d", w.name, got, w.value)
		}
	}
}

var connectionOptions = []want{
	{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, 0x539},
	{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	{"TCP_KEEPIDLE", unix.SOL_TCP, unix.TCP_KEEPIDLE, 180},
	{"TCP_KEEPINTVL", unix.SOL_TCP, unix.TCP_KEEPINTVL, 180},
	{"TCP_KEEPCNT", unix.SOL_TCP, unix.TCP_KEEPCNT, 9},
	{"TCP_NODELAY", unix.SOL_TCP, unix.TCP_NODELAY, 1},
	{"SO_PROTOCOL", unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP}, // not MPTCP
}

func TestListen(t *testing.T) {
	nstest.LeakCheck(t)
	pod := nstest.New(t).Node("n").Pod("p")
	s := inPod(t, pod, sockopt.Defaults())
	l, transparent := listen(t, s, "[::]:15006")
	if !transparent {
		t.Error("not transparent, though we are root")
	}
	check(t, l, append(connectionOptions, want{"SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
		want{"IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 0})...)
	for _, addr := range []netip.Addr{pod.IP4, pod.IP6, netip.MustParseAddr("127.0.0.1")} {
		t.Run(addr.String(), func(t *testing.T) {
			_, server := connected(t, pod, l, addr)
			check(t, server, connectionOptions...)
			if got, err := sockopt.OriginalDst(server); err != nil || got != netip.AddrPortFrom(addr, 15006) {
				t.Errorf("OriginalDst of a direct connection = %s, %v", got, err)
			}
		})
	}
	t.Run("a second process may listen too", func(t *testing.T) {
		listen(t, inPod(t, pod, sockopt.Defaults()), "[::]:15006")
	})
	t.Run("without ReusePort it may not", func(t *testing.T) {
		_, _, err := inPod(t, pod, sockopt.Config{}).Listen(t.Context(), netip.MustParseAddrPort("[::]:15006"))
		if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), ":15006") {
			t.Errorf("error %v, want one of %v that names the address", err, unix.EADDRINUSE)
		}
	})
	t.Run("not transparent when off", func(t *testing.T) {
		l, transparent := listen(t, inPod(t, pod, sockopt.Config{Transparent: sockopt.Off}), "0.0.0.0:0")
		if transparent || option(t, l, unix.SOL_IP, unix.IP_TRANSPARENT) != 0 {
			t.Error("transparent although it is off")
		}
	})
}

func TestListenWithoutIPv6(t *testing.T) {
	node := nstest.New(t).Node("n")
	pod := node.Pod("p", nstest.NoIPv6())
	t.Run("disabled in the pod", func(t *testing.T) {
		l, _ := listen(t, inPod(t, pod, sockopt.Defaults()), "[::]:0")
		connected(t, pod, l, pod.IP4)
	})
	for _, errno := range []error{unix.EAFNOSUPPORT, unix.EADDRNOTAVAIL} {
		t.Run(errno.Error(), func(t *testing.T) {
			s := inPod(t, pod, sockopt.Defaults())
			s.FailListen("tcp6", os.NewSyscallError("socket", errno))
			l, transparent := listen(t, s, "[::]:0")
			if addr := l.Addr().(*net.TCPAddr).AddrPort().Addr(); addr != netip.IPv4Unspecified() || !transparent {
				t.Errorf("listens on %s, transparent %v; want 0.0.0.0, transparent", addr, transparent)
			}
			connected(t, pod, l, pod.IP4)
			if _, _, err := s.Listen(t.Context(), netip.MustParseAddrPort("[::1]:0")); !errors.Is(err, errno) {
				t.Errorf("one IPv6 address is not the wildcard: %v", err)
			}
		})
	}
}

func TestListenPacket(t *testing.T) {
	nstest.LeakCheck(t)
	pod := nstest.New(t).Node("n").Pod("p")
	s := inPod(t, pod, sockopt.Defaults())
	server, err := s.ListenPacket(t.Context(), netip.MustParseAddrPort("[::]:15053"))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := s.ListenPacket(t.Context(), netip.AddrPortFrom(pod.IP4, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	mark := want{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, 0x539}
	check(t, server, mark, want{"SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1})
	check(t, client, mark, want{"SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 0})
	if _, err := client.WriteToUDPAddrPort([]byte("query"), netip.AddrPortFrom(pod.IP4, 15053)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, from, err := server.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "query" || from.Addr().Unmap() != pod.IP4 {
		t.Errorf("got %q from %s, %v", buf[:n], from, err)
	}
}

func closesOnExec(t *testing.T, c syscall.Conn) bool {
	t.Helper()
	raw, err := c.SyscallConn()
	flags := 0
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFD, 0) }), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.FD_CLOEXEC != 0
}

// ways are how a connection is made: on net's poller, or on the caller's.
var ways = map[string]func(*sockopt.Sockets, context.Context, netip.Addr, netip.AddrPort) (*net.TCPConn, error){
	"Dial": (*sockopt.Sockets).Dial,
	"Connect": func(s *sockopt.Sockets, ctx context.Context, src netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
		return pollable(s.Connect(ctx, src, dst))
	},
	"ConnectApart": func(s *sockopt.Sockets, ctx context.Context, src netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
		return pollable(s.ConnectApart(ctx, src, dst))
	},
}

func pollable(c *sockopt.Connection, err error) (*net.TCPConn, error) {
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(c.Detach()), "connected")
	defer f.Close()
	if before, err := keepIdle(f); err != nil || before != 180 { // FileConn changes it
		return nil, fmt.Errorf("TCP_KEEPIDLE is %d, want 180: %w", before, err)
	}
	if c.Detach() != -1 || !errors.Is(c.Close(), net.ErrClosed) {
		return nil, errors.New("the descriptor was given away twice")
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tc := conn.(*net.TCPConn)
	return tc, tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 180 * time.Second, Interval: 180 * time.Second, Count: 9})
}

func keepIdle(f *os.File) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_KEEPIDLE) })
	return n, errors.Join(cerr, err)
}

func TestDial(t *testing.T) {
	for way, dial := range ways {
		t.Run(way, func(t *testing.T) { testDial(t, dial) })
	}
}

func testDial(t *testing.T, dial func(*sockopt.Sockets, context.Context, netip.Addr, netip.AddrPort) (*net.TCPConn, error)) {
	nstest.LeakCheck(t)
	node := nstest.New(t).Node("n")
	a, b := node.Pod("a"), node.Pod("b")
	for _, tt := range []struct{ src, dst netip.Addr }{{a.IP4, b.IP4}, {a.IP6, b.IP6}} {
		t.Run(tt.dst.String(), func(t *testing.T) {
			l, _ := listen(t, inPod(t, b, sockopt.Config{}), netip.AddrPortFrom(tt.dst, 0).String())
			ch := accept(l)
			c, err := dial(inPod(t, a, sockopt.Defaults()), t.Context(), netip.Addr{}, l.Addr().(*net.TCPAddr).AddrPort())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			server := <-ch
			defer server.Close()
			check(t, c, connectionOptions...)
			if !closesOnExec(t, c) {
				t.Error("children would inherit the connection")
			}
			if from := server.RemoteAddr().(*net.TCPAddr).AddrPort(); from.Addr() != tt.src || from.String() != c.LocalAddr().String() {
				t.Errorf("seen from %s, our end says %s, want %s", from, c.LocalAddr(), tt.src)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		_, err := dial(inPod(t, a, sockopt.Defaults()), t.Context(), netip.Addr{}, netip.AddrPortFrom(b.IP4, 1))
		if !errors.Is(err, unix.ECONNREFUSED) || !strings.Contains(err.Error(), b.IP4.String()) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("user timeout", func(t *testing.T) {
		l, _ := listen(t, inPod(t, a, sockopt.Config{UserTimeout: 1500 * time.Millisecond}), "127.0.0.1:0")
		check(t, l, want{"TCP_USER_TIMEOUT", unix.SOL_TCP, unix.TCP_USER_TIMEOUT, 1500})
	})
	t.Run("after close", func(t *testing.T) {
		s := inPod(t, a, sockopt.Defaults())
		s.Close()
		if _, err := dial(s, t.Context(), netip.Addr{}, netip.AddrPortFrom(b.IP4, 1)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("error %v, want %v", err, os.ErrClosed)
		}
	})
}

func TestOwnNamespace(t *testing.T) {
	nstest.LeakCheck(t)
	s := sockopt.New(nil, sockopt.Config{})
	l, _, err := s.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := s.Dial(t.Context(), netip.Addr{}, l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// run runs a command in a namespace.
func run(t *testing.T, ns *netns.NS, name string, args ...string) {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, &out)
	}
}

func TestDialFromAnotherAddress(t *testing.T) {
	nstest.LeakCheck(t)
	pod := nstest.New(t).Node("n").Pod("p")
	s := inPod(t, pod, sockopt.Defaults())
	for _, tt := range []struct{ family, src, all, dst string }{
		{"-4", "192.0.2.7", "0.0.0.0/0", pod.IP4.String()},
		{"-6", "2001:db8::7", "::/0", pod.IP6.String()},
	} {
		t.Run(tt.src, func(t *testing.T) {
			// What the redirection rules do with marks: answers come back here.
			run(t, pod.NS, "ip", tt.family, "rule", "add", "to", tt.src, "lookup", "100")
			run(t, pod.NS, "ip", tt.family, "route", "add", "local", tt.all, "dev", "lo", "table", "100")
			dst := netip.MustParseAddr(tt.dst)
			l, err := pod.Listen("tcp", netip.AddrPortFrom(dst, 0).String())
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			for i := range 6 { // and more than once to one place
				ch := accept(l)
				way, late := []string{"Dial", "ConnectApart", "Connect"}[i%3], 1
				if way == "ConnectApart" {
					late = 0
				}
				c, err := ways[way](s, t.Context(), netip.MustParseAddr(tt.src), l.Addr().(*net.TCPAddr).AddrPort())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				check(t, c, want{"IP_BIND_ADDRESS_NO_PORT", unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, late})
				// A redirected client has connections of its own to this place, through the
				// same pod's conntrack; on one of their ports ours would be taken for theirs.
				// The kernel gives connect one parity of ports first and bind the other.
				if port := c.LocalAddr().(*net.TCPAddr).Port; late == 0 && port%2 == lowPort(t, pod.NS)%2 {
					t.Errorf("the port %d is one that a client's connect gets too", port)
				}
				server := <-ch
				defer server.Close()
				if from := server.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); from.String() != tt.src {
					t.Errorf("the application sees %s, want %s", from, tt.src)
				}
				if _, err := server.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Run("of the other family", func(t *testing.T) {
		for way, dial := range ways {
			_, err := dial(s, t.Context(), netip.MustParseAddr("192.0.2.7"), netip.AddrPortFrom(pod.IP6, 80))
			if !errors.Is(err, sockopt.ErrSource) {
				t.Errorf("%s: error %v, want %v", way, err, sockopt.ErrSource)
			}
		}
	})
	t.Run("not a unicast address", func(t *testing.T) {
		for way, dial := range ways {
			if _, err := dial(s, t.Context(), netip.MustParseAddr("224.0.0.1"), netip.AddrPortFrom(pod.IP4, 80)); err == nil {
				t.Errorf("%s: a connection came from a multicast address", way)
			}
		}
	})
}

func TestOriginalDst(t *testing.T) {
	nstest.LeakCheck(t)
	pod := nstest.New(t).Node("n").Pod("p")
	l, _ := listen(t, inPod(t, pod, sockopt.Defaults()), "[::]:15001")
	for _, tt := range []struct{ iptables, dst string }{
		{"iptables", "192.0.2.80:8080"}, {"ip6tables", "[2001:db8::80]:8080"},
	} {
		t.Run(tt.dst, func(t *testing.T) {
			run(t, pod.NS, tt.iptables, "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "8080", "-j", "REDIRECT", "--to-ports", "15001")
			ch := accept(l)
			c, err := pod.Dial(t.Context(), "tcp", tt.dst)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			server := (<-ch).(*net.TCPConn)
			defer server.Close()
			if got, err := sockopt.OriginalDst(server); err != nil || got.String() != tt.dst {
				t.Errorf("OriginalDst = %s, %v; want %s", got, err, tt.dst)
			}
		})
	}
	t.Run("closed", func(t *testing.T) {
		client, server := connected(t, pod, l, pod.IP4)
		client.Close()
		server.Close()
		if _, err := sockopt.OriginalDst(server); !errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v, want %v", err, net.ErrClosed)
		}
	})
}

// lowPort is the first of the namespace's local ports.
func lowPort(t *testing.T, ns *netns.NS) (low int) {
	t.Helper()
	err := ns.Do(func() error {
		text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
		if err == nil {
			_, err = fmt.Sscan(string(text), &low)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return low
}

// Connections that wait for an answer must not hold threads.
func TestPendingDialsHoldNoThreads(t *testing.T) {
	for way, dial := range ways {
		t.Run(way, func(t *testing.T) { testPendingDials(t, dial) })
	}
}

func testPendingDials(t *testing.T, dial func(*sockopt.Sockets, context.Context, netip.Addr, netip.AddrPort) (*net.TCPConn, error)) {
	nstest.LeakCheck(t)
	pod := nstest.New(t).Node("n").Pod("p")
	run(t, pod.NS, "ip", "route", "add", "192.0.2.0/24", "via", "10.99.1.1")
	run(t, pod.NS, "iptables", "-A", "OUTPUT", "-d", "192.0.2.0/24", "-j", "DROP") // nobody answers
	s := inPod(t, pod, sockopt.Defaults())
	before := nstest.Threads()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if c, err := dial(s, ctx, netip.Addr{}, netip.MustParseAddrPort("192.0.2.1:80")); err == nil {
				c.Close()
				t.Error("connected to nobody")
			}
		})
	}
	for deadline := time.Now().Add(5 * time.Second); pending(t, pod) < 200; {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections under way, want 200", pending(t, pod))
		}
	}
	if after := nstest.Threads(); after > before+8 {
		t.Errorf("%d threads before 200 connections, %d while they wait", before, after)
	}
	cancel()
	wg.Wait()

	t.Run("and are bounded", func(t *testing.T) {
		cfg := sockopt.Defaults()
		cfg.ConnectTimeout = 30 * time.Millisecond
		_, err := dial(inPod(t, pod, cfg), t.Context(), netip.Addr{}, netip.MustParseAddrPort("192.0.2.1:80"))
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("error %v, want a timeout", err)
		}
	})
}

// pending counts connections of the pod in state SYN_SENT (02).
func pending(t *testing.T, p *nstest.Pod) (n int) {
	t.Helper()
	var table []byte
	err := p.NS.Do(func() (err error) { table, err = os.ReadFile("/proc/thread-self/net/tcp"); return err })
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(table), ":0050 02 ")
}

func TestInherit(t *testing.T) {
	nstest.LeakCheck(t)
	pod := nstest.New(t).Node("n").Pod("p")
	old := inPod(t, pod, sockopt.Defaults())
	l, _ := listen(t, old, "[::]:15001")
	u, err := old.ListenPacket(t.Context(), netip.MustParseAddrPort("127.0.0.1:15053"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	lf, err1 := l.File()
	uf, err2 := u.File()
	unused, _ := listen(t, old, "127.0.0.1:0")
	xf, err3 := unused.File()
	ns, err4 := pod.NS.Dup()
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	s, err := sockopt.Inherit(ns, sockopt.Defaults(), []*os.File{lf, uf, xf})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	l.Close() // the old process is gone; its queue is not
	got, transparent := listen(t, s, "[::]:15001")
	if !transparent || got.Addr().String() != l.Addr().String() {
		t.Errorf("inherited %s, transparent %v", got.Addr(), transparent)
	}
	_, server := connected(t, pod, got, pod.IP6)
	if err := s.Accepted(server); err != nil {
		t.Error(err)
	}
	check(t, server, connectionOptions...)
	gotU, err := s.ListenPacket(t.Context(), netip.MustParseAddrPort("127.0.0.1:15053"))
	if err != nil {
		t.Fatal(err)
	}
	defer gotU.Close()
	again, _ := listen(t, s, "[::]:15001") // once inherited, then opened
	again.Close()
}

func TestInheritRefuses(t *testing.T) {
	nstest.LeakCheck(t)
	plain, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	unbound := os.NewFile(uintptr(fd), "unbound")
	s, err := sockopt.Inherit(nil, sockopt.Config{}, []*os.File{plain, unbound})
	if s != nil || !errors.Is(err, unix.ENOTSOCK) || !strings.Contains(err.Error(), "unbound") {
		t.Errorf("Inherit = %v, %v; want both files refused by name", s, err)
	}
}

func BenchmarkDial(b *testing.B) {
	pod := nstest.New(b).Node("n").Pod("p")
	l, err := pod.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	ns, err := pod.NS.Dup()
	if err != nil {
		b.Fatal(err)
	}
	s := sockopt.New(ns, sockopt.Defaults())
	defer s.Close()
	for b.Loop() {
		c, err := s.Dial(context.Background(), netip.Addr{}, l.Addr().(*net.TCPAddr).AddrPort())
		if err != nil {
			b.Fatal(err)
		}
		c.SetLinger(0)
		c.Close()
	}
}
