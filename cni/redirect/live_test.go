package redirect_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"github.com/warren-mesh/warren/internal/netns"
	"golang.org/x/sys/unix"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/proxy/sockopt"
)

// patient is how long an end waits for what the other sent. A packet that was
// dropped comes again; one that the rules led astray never does.
const patient = 30 * time.Second

// live is a connection of the pod's, with both of its ends, and what they said.
type live struct {
	name        string
	inPod, peer net.Conn
	said        uint64
}

// exchange sends a number from one end to the other and another one back. Who
// begins is by turns: the first packet that conntrack sees may go either way.
func (l *live) exchange() error {
	l.said++
	first, second := l.inPod, l.peer
	if l.said%2 == 0 {
		first, second = second, first
	}
	if err := says(first, second, 2*l.said); err != nil {
		return fmt.Errorf("%s, exchange %d: %w", l.name, l.said, err)
	}
	if err := says(second, first, 2*l.said+1); err != nil {
		return fmt.Errorf("%s, answer %d: %w", l.name, l.said, err)
	}
	return nil
}

func says(from, to net.Conn, number uint64) error {
	to.SetReadDeadline(time.Now().Add(patient))
	if _, err := from.Write(binary.BigEndian.AppendUint64(nil, number)); err != nil {
		return err
	}
	var buf [8]byte
	if _, err := io.ReadFull(to, buf[:]); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint64(buf[:]); got != number {
		return fmt.Errorf("heard %d, said %d", got, number)
	}
	return nil
}

// end closes both ends and checks that each sees the other's.
func (l *live) end() error {
	var errs error
	for _, ends := range [][2]net.Conn{{l.inPod, l.peer}, {l.peer, l.inPod}} {
		errs = errors.Join(errs, ends[0].(*net.TCPConn).CloseWrite())
		ends[1].SetReadDeadline(time.Now().Add(patient))
		if n, err := ends[1].Read(make([]byte, 1)); n != 0 || err != io.EOF {
			errs = errors.Join(errs, fmt.Errorf("%s: %d bytes and %v where the end was to come", l.name, n, err))
		}
	}
	l.inPod.Close()
	l.peer.Close()
	return errs
}

// stage is a pod that comes and goes, with an application and the proxy's
// listeners in it, and a peer.
type stage struct {
	t         *testing.T
	pod, peer *nstest.Pod
	proxy     *sockopt.Sockets
	listeners map[string]net.Listener
}

func newStage(t *testing.T) *stage {
	t.Helper()
	node := nstest.New(t).Node("n")
	s := &stage{t: t, pod: node.Pod("pod"), peer: node.Pod("peer"), listeners: map[string]net.Listener{}}
	ns, err := s.pod.NS.Dup()
	if err != nil {
		t.Fatal(err)
	}
	s.proxy = sockopt.New(ns, sockopt.Defaults())
	t.Cleanup(func() { s.proxy.Close() })
	keep := func(name string, l net.Listener, err error) {
		if err != nil {
			t.Fatal(err)
		}
		s.listeners[name] = l
		t.Cleanup(func() { l.Close() })
	}
	for name, port := range map[string]uint16{"outbound": redirect.PortOutbound, "inbound": redirect.PortInbound} {
		l, _, err := s.proxy.Listen(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		keep(name, l, err)
	}
	l, err := s.pod.Listen("tcp", "[::]:8080")
	keep("application", l, err)
	l, err = s.peer.Listen("tcp", "[::]:8080")
	keep("peer", l, err)
	return s
}

// connect makes a connection and takes it at the listener that it must come to.
func (s *stage) connect(name string, from *nstest.Pod, to netip.Addr, listener string) *live {
	s.t.Helper()
	dialled, err := from.Dial(s.t.Context(), "tcp", netip.AddrPortFrom(to, appPort).String())
	if err != nil {
		s.t.Fatal(err)
	}
	return s.taken(name, from, dialled, listener)
}

// taken pairs a connection that was dialled with its other end.
func (s *stage) taken(name string, from *nstest.Pod, dialled net.Conn, listener string) *live {
	s.t.Helper()
	l := s.listeners[listener].(*net.TCPListener)
	l.SetDeadline(time.Now().Add(patient))
	accepted, err := l.Accept()
	if err != nil {
		s.t.Fatalf("%s did not come to %s: %v", name, listener, err)
	}
	s.t.Cleanup(func() { dialled.Close(); accepted.Close() })
	if from == s.pod {
		return &live{name: name, inPod: dialled, peer: accepted}
	}
	return &live{name: name, inPod: accepted, peer: dialled}
}

// outside makes n connections that nothing captures, in both directions and
// families.
func (s *stage) outside(n int) (all []*live) {
	s.t.Helper()
	for i := range n {
		var l *live
		switch i % 4 {
		case 0:
			l = s.connect(fmt.Sprintf("inbound v4 %d", i), s.peer, s.pod.IP4, "application")
		case 1:
			l = s.connect(fmt.Sprintf("outbound v4 %d", i), s.pod, s.peer.IP4, "peer")
		case 2:
			l = s.connect(fmt.Sprintf("inbound v6 %d", i), s.peer, s.pod.IP6, "application")
		case 3:
			l = s.connect(fmt.Sprintf("outbound v6 %d", i), s.pod, s.peer.IP6, "peer")
		}
		if err := l.exchange(); err != nil {
			s.t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

// captured makes connections that the rules must lead to the proxy, of both
// directions, and one that it opens to the application from a borrowed address.
func (s *stage) captured() (all []*live) {
	s.t.Helper()
	all = []*live{
		s.connect("captured inbound v4", s.peer, s.pod.IP4, "inbound"),
		s.connect("captured outbound v4", s.pod, s.peer.IP4, "outbound"),
		s.connect("captured inbound v6", s.peer, s.pod.IP6, "inbound"),
		s.connect("captured outbound v6", s.pod, s.peer.IP6, "outbound"),
	}
	for _, addr := range [][2]netip.Addr{{s.peer.IP4, s.pod.IP4}, {s.peer.IP6, s.pod.IP6}} {
		c, err := borrow(s.t.Context(), s.pod, netip.AddrPortFrom(addr[0], 0), netip.AddrPortFrom(addr[1], appPort))
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, s.taken("onward from "+addr[0].String(), s.pod, c, "application"))
	}
	return all
}

// busy keeps connections talking until the returned function is called, which
// says what went wrong with each.
func busy(all []*live) (stop func() []error) {
	done := make(chan struct{})
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, l := range all {
		wg.Go(func() {
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for errs[i] == nil {
				errs[i] = l.exchange()
				select {
				case <-done:
					return
				case <-tick.C:
				}
			}
		})
	}
	return func() []error { close(done); wg.Wait(); return errs }
}

// Connections that are alive when a pod comes into the mesh or leaves it go on,
// whether they are busy or idle and whoever speaks first.
func TestLiveConnectionsGoOn(t *testing.T) {
	const (
		connections = 200
		cycles      = 50
	)
	forEach(t, func(t *testing.T, b redirect.Backend) {
		s := newStage(t)
		all := s.outside(connections)
		// In blocks of four, one of each kind.
		var talking, silent []*live
		for i, l := range all {
			if i/4%2 == 0 {
				talking = append(talking, l)
			} else {
				silent = append(silent, l)
			}
		}
		stop := busy(talking)
		defer func() {
			broken := 0
			for _, err := range stop() {
				if err != nil {
					broken++
					t.Error(err)
				}
			}
			t.Logf("%d of %d busy connections broke, each said %d numbers or so", broken, len(talking), 2*talking[0].said)
			for _, l := range all {
				if err := errors.Join(l.exchange(), l.end()); err != nil {
					t.Errorf("at the end: %v", err)
				}
			}
		}()
		// In each phase of a cycle a tenth of the silent ones speak.
		speak := func(cycle int, phase string) {
			t.Helper()
			for i := cycle % 10; i < len(silent); i += 10 {
				if err := silent[i].exchange(); err != nil {
					t.Fatalf("cycle %d, %s: %v", cycle, phase, err)
				}
			}
		}
		for cycle := range cycles {
			c := redirect.Defaults()
			c.DNS = cycle%2 == 0
			if err := b.Apply(s.pod.NS, c); err != nil {
				t.Fatal(err)
			}
			speak(cycle, "in the mesh")
			captured := s.captured()
			other := c
			other.DNS = !c.DNS
			for _, step := range []struct {
				name string
				do   func() error
			}{
				{"in the mesh", func() error { return nil }},
				{"adjusted", func() error { return b.Apply(s.pod.NS, other) }},
				{"leaving", func() error { return b.StopCapture(s.pod.NS) }},
				{"back again", func() error { return b.Apply(s.pod.NS, c) }},
				{"leaving again", func() error { return b.StopCapture(s.pod.NS) }},
			} {
				if err := step.do(); err != nil {
					t.Fatal(err)
				}
				for _, l := range captured {
					if err := l.exchange(); err != nil {
						t.Fatalf("cycle %d, %s: %v", cycle, step.name, err)
					}
				}
			}
			speak(cycle, "leaving")
			for _, l := range captured {
				if err := l.end(); err != nil {
					t.Fatalf("cycle %d, to the end: %v", cycle, err)
				}
			}
			if err := b.Remove(s.pod.NS); err != nil {
				t.Fatal(err)
			}
			speak(cycle, "outside")
		}
	})
}

// dialFrom connects from a port that has been used before.
func dialFrom(ctx context.Context, from *nstest.Pod, local, to netip.AddrPort) (c net.Conn, err error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(local), Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}), err)
	}}
	err = from.NS.Do(func() (err error) {
		c, err = d.DialContext(ctx, "tcp", to.String())
		return err
	})
	return c, err
}

// One port may have a connection to each of many places. Redirected, all of them have
// the same ends, and NAT gives all but the first another source port; each must come to
// a socket of its own, however the kernel looks that up.
func TestOnePortForSeveralConnections(t *testing.T) {
	forEach(t, func(t *testing.T, b redirect.Backend) {
		s := newStage(t)
		apply(t, b, s.pod.NS, redirect.Defaults())
		for _, tt := range []struct {
			name      string
			from      *nstest.Pod
			local, to netip.Addr
		}{
			{"inbound", s.peer, s.peer.IP4, s.pod.IP4}, {"inbound", s.peer, s.peer.IP6, s.pod.IP6},
			{"outbound", s.pod, s.pod.IP4, s.peer.IP4}, {"outbound", s.pod, s.pod.IP6, s.peer.IP6},
		} {
			var all []*live
			for port := range uint16(3) {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				c, err := dialFrom(ctx, tt.from, netip.AddrPortFrom(tt.local, 41000), netip.AddrPortFrom(tt.to, appPort+port))
				cancel()
				if err != nil {
					t.Fatalf("%s, connection %d from one port: %v", tt.name, port+1, err)
				}
				all = append(all, s.taken(fmt.Sprintf("%s to port %d", tt.name, appPort+port), tt.from, c, tt.name))
			}
			for range 2 {
				for _, l := range all {
					if err := l.exchange(); err != nil {
						t.Error(err)
					}
				}
			}
		}
	})
}

// borrow connects as the proxy does, from an address that is not its own. With
// port 0, bind chooses one, of the other parity than clients' have.
func borrow(ctx context.Context, pod *nstest.Pod, from, to netip.AddrPort) (c net.Conn, err error) {
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) {
			var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: from.Addr().As16(), Port: int(from.Port())}
			level, transparent := unix.SOL_IPV6, unix.IPV6_TRANSPARENT
			if from.Addr().Is4() {
				sa = &unix.SockaddrInet4{Addr: from.Addr().As4(), Port: int(from.Port())}
				level, transparent = unix.SOL_IP, unix.IP_TRANSPARENT
			}
			err = errors.Join(unix.SetsockoptInt(int(fd), level, transparent, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, redirect.MarkProxy),
				unix.Bind(int(fd), sa))
		}), err)
	}}
	err = pod.NS.Do(func() (err error) {
		c, err = d.DialContext(ctx, "tcp", to.String())
		return err
	})
	return c, err
}

// Conntrack takes a connection from before up in the middle, unredirected. Its
// port must not be a way round the rules for a new one.
func TestNoWayRoundInTheFootstepsOfALiveConnection(t *testing.T) {
	forEach(t, func(t *testing.T, b redirect.Backend) {
		for _, tt := range []struct {
			name          string
			inbound       bool
			podSpeaks     bool // first, after the pod was redirected
			v6            bool
			captor, round string
		}{
			{"inbound, the peer spoke first", true, false, false, "inbound", "application"},
			{"inbound, the pod spoke first", true, true, true, "inbound", "application"},
			{"outbound, the peer spoke first", false, false, true, "outbound", "peer"},
			{"outbound, the pod spoke first", false, true, false, "outbound", "peer"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				s := newStage(t)
				// A connection that was reset is remembered for so long.
				run(t, s.pod.NS, "sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_close=1")
				from, to := s.peer, s.pod
				if !tt.inbound {
					from, to = s.pod, s.peer
				}
				addr := to.IP4
				if tt.v6 {
					addr = to.IP6
				}
				l := s.connect("from before", from, addr, tt.round)
				apply(t, b, s.pod.NS, redirect.Defaults())
				if tt.podSpeaks {
					l.said = 0
				} else {
					l.said = 1
				}
				if err := l.exchange(); err != nil {
					t.Fatal(err)
				}
				dialled, accepted := l.peer, l.inPod
				if !tt.inbound {
					dialled, accepted = accepted, dialled
				}
				local := dialled.LocalAddr().(*net.TCPAddr).AddrPort()
				accepted.(*net.TCPConn).SetLinger(0)
				accepted.Close() // resets it
				if _, err := dialled.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Fatalf("the connection from before ended with %v", err)
				}
				dialled.Close()

				s.listeners[tt.round].Close() // nothing to be met there
				ctx, cancel := context.WithTimeout(t.Context(), patient)
				defer cancel()
				again, err := dialFrom(ctx, from, local, netip.AddrPortFrom(addr, appPort))
				if err != nil {
					t.Fatalf("it was not redirected: %v", err)
				}
				if err := s.taken("the second", from, again, tt.captor).exchange(); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// The proxy connects from the client's address, and may happen upon a port from
// which the client itself is connected since before the pod was redirected.
func TestTheProxyLeavesTheClientsOwnConnectionAlone(t *testing.T) {
	forEach(t, func(t *testing.T, b redirect.Backend) {
		s := newStage(t)
		own := s.connect("the client's own", s.peer, s.pod.IP4, "application")
		own.said = 1 // the client speaks first, so its direction is conntrack's first one
		apply(t, b, s.pod.NS, redirect.Defaults())
		if err := own.exchange(); err != nil {
			t.Fatal(err)
		}
		client, app := own.peer.LocalAddr().(*net.TCPAddr).AddrPort(), netip.AddrPortFrom(s.pod.IP4, appPort)
		ctx, cancel := context.WithCancel(t.Context())
		tried := make(chan error, 1)
		go func() { // it gets nowhere
			c, err := borrow(ctx, s.pod, client, app)
			if err == nil {
				c.Close()
			}
			tried <- err
		}()
		t.Cleanup(func() {
			cancel()
			if err := <-tried; err == nil {
				t.Error("two connections have the same ends")
			}
		})
		var sent bool
		for deadline := time.Now().Add(patient); !sent && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			sent = strings.Contains(feed(t, s.pod.NS, "", "ss", "-tan"), "SYN-SENT")
		}
		if !sent {
			t.Fatal("the proxy has not tried")
		}
		for range 20 {
			if err := own.exchange(); err != nil {
				t.Fatal(err)
			}
		}
		if err := own.end(); err != nil {
			t.Error(err)
		}
	})
}

func apply(t *testing.T, b redirect.Backend, ns *netns.NS, c redirect.Config) {
	t.Helper()
	if err := b.Apply(ns, c); err != nil {
		t.Fatal(err)
	}
}

// What conntrack remembers of a pod's earlier time in the mesh, or of the time
// before, must not lead what comes later astray.
func TestConntrackRemembersNothingOfEarlierTimes(t *testing.T) {
	forEach(t, func(t *testing.T, b redirect.Backend) {
		// Conntrack is at work whatever we do, as it is in a pod with rules of its own.
		const tracking = "iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT"
		t.Run("a port that was captured", func(t *testing.T) { // and conntrack was off in between
			s := newStage(t)
			apply(t, b, s.pod.NS, redirect.Defaults())
			first := s.connect("captured", s.pod, s.peer.IP4, "outbound")
			local := first.inPod.LocalAddr().(*net.TCPAddr).AddrPort()
			// The proxy closes first: it is its side that waits for stragglers.
			if err := (&live{name: first.name, inPod: first.peer, peer: first.inPod}).end(); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(b.StopCapture(s.pod.NS), b.Remove(s.pod.NS)); err != nil {
				t.Fatal(err)
			}
			again, err := dialFrom(t.Context(), s.pod, local, netip.AddrPortFrom(s.peer.IP4, appPort))
			if err != nil {
				t.Fatal(err)
			}
			second := s.taken("direct", s.pod, again, "peer")
			if err := second.exchange(); err != nil {
				t.Fatal(err)
			}
			apply(t, b, s.pod.NS, redirect.Defaults())
			for range 3 {
				if err := second.exchange(); err != nil {
					t.Fatal(err)
				}
			}
		})
		t.Run("a resolver's socket", func(t *testing.T) {
			s := newStage(t)
			run(t, s.pod.NS, "sh", "-c", tracking)
			mine, err := s.proxy.ListenPacket(t.Context(), netip.MustParseAddrPort("127.0.0.1:15053"))
			if err != nil {
				t.Fatal(err)
			}
			answer(t, "proxy", mine)
			theirs, err := s.peer.ListenPacket("udp", "[::]:53")
			if err != nil {
				t.Fatal(err)
			}
			answer(t, "resolver", theirs)
			app, err := s.pod.Dial(t.Context(), "udp", netip.AddrPortFrom(s.peer.IP4, 53).String())
			if err != nil {
				t.Fatal(err)
			}
			defer app.Close()
			c := redirect.Defaults()
			c.DNS = true
			for range 2 {
				if got := query(t, app); got != "resolver" {
					t.Fatalf("outside, %s answers", got)
				}
				apply(t, b, s.pod.NS, c)
				if got := query(t, app); got != "proxy" {
					t.Fatalf("in the mesh, %s answers", got)
				}
				if err := errors.Join(b.StopCapture(s.pod.NS), b.Remove(s.pod.NS)); err != nil {
					t.Fatal(err)
				}
			}
		})
		t.Run("a connection that nobody has answered", func(t *testing.T) {
			s := newStage(t)
			run(t, s.pod.NS, "sh", "-c", tracking)
			run(t, s.peer.NS, "iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "9999", "-j", "DROP")
			dialled := make(chan error, 1)
			go func() {
				c, err := s.pod.Dial(t.Context(), "tcp", netip.AddrPortFrom(s.peer.IP4, 9999).String())
				if err == nil {
					c.Close()
				}
				dialled <- err
			}()
			for {
				var n []byte
				err := s.pod.NS.Do(func() (err error) {
					n, err = os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				if string(n) != "0\n" {
					break
				}
				time.Sleep(time.Millisecond)
			}
			apply(t, b, s.pod.NS, redirect.Defaults())
			l := s.listeners["outbound"].(*net.TCPListener)
			l.SetDeadline(time.Now().Add(patient))
			c, err := l.Accept()
			if err != nil {
				t.Fatalf("it was not redirected: %v", err)
			}
			c.Close()
			if err := <-dialled; err != nil {
				t.Error(err)
			}
		})
	})
}
