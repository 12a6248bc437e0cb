package redirect_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/proxy/sockopt"
)

const (
	patience = 5 * time.Second
	appPort  = 8080
)

// world is a pod with the rules under test, the proxy's listeners in it, and
// somebody else to talk to.
type world struct {
	node      *nstest.Node
	pod, peer *nstest.Pod
	proxy     *sockopt.Sockets // of the pod, marked
}

// call is what a server saw of one connection.
type call struct{ Server, From, OrigDst string }

// serve says on each connection who it is, who called and what for.
func serve(t *testing.T, name string, l net.Listener) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			orig, err := sockopt.OriginalDst(c.(*net.TCPConn))
			if err != nil {
				orig = netip.AddrPort{}
			}
			from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			io.WriteString(c, name+"\n"+from.String()+"\n"+orig.String())
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// ask reads what the server on the other end of a connection saw.
func ask(t *testing.T, c net.Conn, err error) call {
	t.Helper()
	if err != nil {
		return call{Server: err.Error()}
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	text, err := io.ReadAll(c)
	if err != nil {
		return call{Server: err.Error()}
	}
	var got call
	if _, err := fmt.Sscan(string(text), &got.Server, &got.From, &got.OrigDst); err != nil {
		return call{Server: err.Error()}
	}
	return got
}

func newWorld(t *testing.T, b redirect.Backend, c redirect.Config) *world {
	t.Helper()
	node := nstest.New(t).Node("n")
	w := &world{node: node, pod: node.Pod("pod"), peer: node.Pod("peer")}
	ns, err := w.pod.NS.Dup()
	if err != nil {
		t.Fatal(err)
	}
	w.proxy = sockopt.New(ns, sockopt.Defaults())
	t.Cleanup(func() { w.proxy.Close() })
	for name, port := range map[string]uint16{
		"outbound": redirect.PortOutbound, "inbound": redirect.PortInbound, "hbone": redirect.PortHBONE, "dns": redirect.PortDNS,
	} {
		l, _, err := w.proxy.Listen(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		if err != nil {
			t.Fatal(err)
		}
		serve(t, name, l)
	}
	l, err := w.pod.Listen("tcp", "[::]:8080")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, "application", l)
	if l, err = w.peer.Listen("tcp", "[::]:8080"); err != nil {
		t.Fatal(err)
	}
	serve(t, "peer", l)
	if err := b.Apply(w.pod.NS, c); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) dial(t *testing.T, from *nstest.Pod, to netip.AddrPort) call {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", to.String())
	return ask(t, c, err)
}

func (w *world) proxyDial(t *testing.T, src netip.Addr, to netip.AddrPort) call {
	t.Helper()
	c, err := w.proxy.Dial(t.Context(), src, to)
	if err != nil {
		return ask(t, nil, err)
	}
	return ask(t, c, nil)
}

// run runs a command in a namespace.
func run(t *testing.T, ns *netns.NS, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := errors.Join(ns.Do(cmd.Start), cmd.Wait()); err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
}

func forEach(t *testing.T, test func(t *testing.T, b redirect.Backend)) {
	nstest.Require(t)
	for _, name := range []string{redirect.NameNFT, redirect.NameLegacy, redirect.NameNFTables} {
		t.Run(name, func(t *testing.T) {
			nstest.LeakCheck(t)
			b, err := redirect.Named(name)
			if err != nil {
				t.Fatal(err)
			}
			test(t, b)
		})
	}
}

// family is what a traffic test needs of one IP version.
type family struct {
	name                           string
	pod, peer, node, probe, nobody netip.Addr
	loopback                       netip.Addr
}

func (w *world) families() []family {
	return []family{
		{"v4", w.pod.IP4, w.peer.IP4, w.node.IP4, redirect.ProbeIP4(), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1")},
		{"v6", w.pod.IP6, w.peer.IP6, w.node.IP6, redirect.ProbeIP6(), netip.MustParseAddr("2001:db8::1"), netip.IPv6Loopback()},
	}
}

func TestTraffic(t *testing.T) {
	forEach(t, func(t *testing.T, b redirect.Backend) {
		w := newWorld(t, b, redirect.Defaults())
		for _, f := range w.families() {
			at := netip.AddrPortFrom
			// The probe's source, as the node agent's SNAT on the host makes it.
			run(t, w.node.NS, "ip", "addr", "add", f.probe.String(), "dev", "lo", "nodad")
			host := &nstest.Pod{NS: w.node.NS}
			tests := []struct {
				name string
				got  func(t *testing.T) call
				want call
			}{
				{"outbound is captured", func(t *testing.T) call { return w.dial(t, w.pod, at(f.nobody, 443)) },
					call{"outbound", f.pod.String(), at(f.nobody, 443).String()}},
				{"outbound to a pod is captured", func(t *testing.T) call { return w.dial(t, w.pod, at(f.peer, appPort)) },
					call{"outbound", f.pod.String(), at(f.peer, appPort).String()}},
				{"outbound of the proxy is not", func(t *testing.T) call { return w.proxyDial(t, netip.Addr{}, at(f.peer, appPort)) },
					call{"peer", f.pod.String(), at(f.peer, appPort).String()}},
				{"inbound is captured", func(t *testing.T) call { return w.dial(t, w.peer, at(f.pod, appPort)) },
					call{"inbound", f.peer.String(), at(f.pod, appPort).String()}},
				{"inbound to a port without a server too", func(t *testing.T) call { return w.dial(t, w.peer, at(f.pod, 1)) },
					call{"inbound", f.peer.String(), at(f.pod, 1).String()}},
				{"HBONE goes to its own listener", func(t *testing.T) call { return w.dial(t, w.peer, at(f.pod, redirect.PortHBONE)) },
					call{"hbone", f.peer.String(), at(f.pod, redirect.PortHBONE).String()}},
				{"from the host is captured", func(t *testing.T) call { return w.dial(t, host, at(f.pod, appPort)) },
					call{"inbound", w.gateway(f).String(), at(f.pod, appPort).String()}},
				{"probes reach the application", func(t *testing.T) call { return w.probe(t, f) },
					call{"application", f.probe.String(), at(f.pod, appPort).String()}},
				{"the pod to itself is not captured", func(t *testing.T) call { return w.dial(t, w.pod, at(f.pod, appPort)) },
					call{"application", f.pod.String(), at(f.pod, appPort).String()}},
				{"loopback is not", func(t *testing.T) call { return w.dial(t, w.pod, at(f.loopback, appPort)) },
					call{"application", f.loopback.String(), at(f.loopback, appPort).String()}},
				{"the proxy borrows a client's address", func(t *testing.T) call { return w.proxyDial(t, f.nobody, at(f.pod, appPort)) },
					call{"application", f.nobody.String(), at(f.pod, appPort).String()}},
				{"also of a pod that it routes to", func(t *testing.T) call { return w.proxyDial(t, f.peer, at(f.pod, appPort)) },
					call{"application", f.peer.String(), at(f.pod, appPort).String()}},
				{"DNS over TCP is outbound like any other", func(t *testing.T) call { return w.dial(t, w.pod, at(f.nobody, 53)) },
					call{"outbound", f.pod.String(), at(f.nobody, 53).String()}},
			}
			for _, tt := range tests {
				t.Run(f.name+" "+tt.name, func(t *testing.T) {
					if got := tt.got(t); got != tt.want {
						t.Errorf("got %+v, want %+v", got, tt.want)
					}
				})
			}
		}
	})
}

// gateway is the node's address on the pod's link.
func (w *world) gateway(f family) netip.Addr {
	if f.pod.Is4() {
		a := f.pod.As4()
		a[3] = 1
		return netip.AddrFrom4(a)
	}
	a := f.pod.As16()
	a[15] = 1
	return netip.AddrFrom16(a)
}

// probe connects to the pod as kubelet's probes arrive.
func (w *world) probe(t *testing.T, f family) call {
	t.Helper()
	ns, err := w.node.NS.Dup()
	if err != nil {
		t.Fatal(err)
	}
	host := sockopt.New(ns, sockopt.Config{})
	defer host.Close()
	c, err := host.Dial(t.Context(), f.probe, netip.AddrPortFrom(f.pod, appPort))
	if err != nil {
		return ask(t, nil, err)
	}
	return ask(t, c, nil)
}

func TestTrafficWithInboundBypass(t *testing.T) {
	forEach(t, func(t *testing.T, b redirect.Backend) {
		c := redirect.Defaults()
		c.BypassInbound = true
		w := newWorld(t, b, c)
		for _, f := range w.families() {
			in, out := netip.AddrPortFrom(f.pod, appPort), netip.AddrPortFrom(f.nobody, 80)
			if got, want := w.dial(t, w.peer, in), (call{"application", f.peer.String(), in.String()}); got != want {
				t.Errorf("inbound: got %+v, want %+v", got, want)
			}
			if got, want := w.dial(t, w.pod, out), (call{"outbound", f.pod.String(), out.String()}); got != want {
				t.Errorf("outbound: got %+v, want %+v", got, want)
			}
		}
	})
}

func TestTrafficOfVirtualInterfaces(t *testing.T) {
	forEach(t, func(t *testing.T, b redirect.Backend) {
		c := redirect.Defaults()
		c.VirtualInterfaces = []string{"vm0"}
		w := newWorld(t, b, c)
		vm, path := nstest.NewNS(t, "vm")
		run(t, w.pod.NS, "sh", "-euc", `
			ip link add vm0 type veth peer name eth0 netns `+path+`
			ip addr add 172.30.0.1/24 dev vm0; ip link set vm0 up`)
		run(t, vm, "sh", "-euc", `
			ip addr add 172.30.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 172.30.0.1`)
		got := w.dial(t, &nstest.Pod{NS: vm}, netip.MustParseAddrPort("192.0.2.1:443"))
		if want := (call{"outbound", "172.30.0.2", "192.0.2.1:443"}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

func TestTrafficOfDNS(t *testing.T) {
	forEach(t, func(t *testing.T, b redirect.Backend) {
		c := redirect.Defaults()
		c.DNS = true
		w := newWorld(t, b, c)
		for _, f := range w.families() {
			// On loopback, where REDIRECT leads: the answer must come from there.
			captured, err := w.proxy.ListenPacket(t.Context(), netip.AddrPortFrom(f.loopback, redirect.PortDNS))
			if err != nil {
				t.Fatal(err)
			}
			answer(t, "proxy", captured)
		}
		real, err := w.peer.ListenPacket("udp", "[::]:53")
		if err != nil {
			t.Fatal(err)
		}
		answer(t, "resolver", real)
		for _, f := range w.families() {
			t.Run(f.name, func(t *testing.T) {
				// Connected: an answer from another address would be dropped.
				app, err := w.pod.Dial(t.Context(), "udp", netip.AddrPortFrom(f.peer, 53).String())
				if err != nil {
					t.Fatal(err)
				}
				defer app.Close()
				if got := query(t, app); got != "proxy" {
					t.Errorf("the application's query over UDP was answered by %q", got)
				}
				own, err := w.proxy.ListenPacket(t.Context(), netip.AddrPortFrom(f.pod, 0))
				if err != nil {
					t.Fatal(err)
				}
				defer own.Close()
				if got := queryFrom(t, own, netip.AddrPortFrom(f.peer, 53)); got != "resolver" {
					t.Errorf("the proxy's own query was answered by %q", got)
				}
				tcp := netip.AddrPortFrom(f.nobody, 53)
				if got, want := w.dial(t, w.pod, tcp), (call{"dns", f.pod.String(), tcp.String()}); got != want {
					t.Errorf("DNS over TCP: got %+v, want %+v", got, want)
				}
			})
		}
	})
}

// answer answers every packet with a name.
func answer(t *testing.T, name string, c net.PacketConn) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo([]byte(name), from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
}

func query(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "query"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func queryFrom(t *testing.T, c *net.UDPConn, to netip.AddrPort) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.WriteToUDPAddrPort([]byte("query"), to); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, _, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// Captured connections outlive the capturing, borrowed addresses included.
func TestStopCaptureKeepsConnections(t *testing.T) {
	forEach(t, func(t *testing.T, b redirect.Backend) {
		node := nstest.New(t).Node("n")
		pod, peer := node.Pod("pod"), node.Pod("peer")
		ns, err := pod.NS.Dup()
		if err != nil {
			t.Fatal(err)
		}
		proxy := sockopt.New(ns, sockopt.Defaults())
		defer proxy.Close()
		in, _, err := proxy.Listen(t.Context(), netip.AddrPortFrom(netip.IPv6Unspecified(), redirect.PortInbound))
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		app, err := pod.Listen("tcp", "[::]:8080")
		if err != nil {
			t.Fatal(err)
		}
		defer app.Close()
		if err := b.Apply(pod.NS, redirect.Defaults()); err != nil {
			t.Fatal(err)
		}
		to := netip.AddrPortFrom(pod.IP4, appPort)
		client, err := peer.Dial(t.Context(), "tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		atProxy, err := in.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer atProxy.Close()
		onward, err := proxy.Dial(t.Context(), peer.IP4, to)
		if err != nil {
			t.Fatal(err)
		}
		defer onward.Close()
		atApp, err := app.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer atApp.Close()
		if err := b.StopCapture(pod.NS); err != nil {
			t.Fatal(err)
		}
		for _, ends := range [][2]net.Conn{{client, atProxy}, {atProxy, client}, {onward, atApp}, {atApp, onward}} {
			passes(t, ends[0], ends[1])
		}
		direct, err := peer.Dial(t.Context(), "tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		defer direct.Close()
		uncaptured, err := app.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer uncaptured.Close()
		if from := uncaptured.RemoteAddr().String(); from != direct.LocalAddr().String() {
			t.Errorf("a new connection comes from %s, want the client itself at %s", from, direct.LocalAddr())
		}
	})
}

func passes(t *testing.T, from, to net.Conn) {
	t.Helper()
	to.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 1)
	_, err := from.Write([]byte("x"))
	if _, readErr := io.ReadFull(to, buf); err != nil || readErr != nil {
		t.Errorf("from %s to %s: %v, %v", from.LocalAddr(), to.LocalAddr(), err, readErr)
	}
}
