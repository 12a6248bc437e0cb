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

// TestNotToItself: a port of the namespace's own that nobody listens on refuses,
// also where the kernel would connect it to itself.
func TestNotToItself(t *testing.T) {
	for way, dial := range ways {
		t.Run(way, func(t *testing.T) {
			nstest.LeakCheck(t)
			pod := nstest.New(t).Node("n").Pod("p")
			run(t, pod.NS, "sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40001")
			s := inPod(t, pod, sockopt.Defaults())
			for range 4 {
				for _, to := range []string{"127.0.0.1:40000", "127.0.0.1:40001", "[::1]:40000", "[::1]:40001"} {
					c, err := dial(s, t.Context(), netip.Addr{}, netip.MustParseAddrPort(to))
					switch {
					case err == nil:
						t.Errorf("connected from %s to %s", c.LocalAddr(), c.RemoteAddr())
						c.Close()
					case !errors.Is(err, unix.ECONNREFUSED):
						t.Error(err)
					}
				}
			}
		})
	}
}

// TestDialLinkLocal: the address is of a link, which the client named.
func TestDialLinkLocal(t *testing.T) {
	for way, dial := range ways {
		t.Run(way, func(t *testing.T) {
			nstest.LeakCheck(t)
			pod := nstest.New(t).Node("n").Pod("p")
			run(t, pod.NS, "ip", "-6", "addr", "add", "fe80::77/64", "dev", "lo", "nodad")
			l, _ := listen(t, inPod(t, pod, sockopt.Config{}), "[::]:0")
			to := netip.AddrPortFrom(netip.MustParseAddr("fe80::77%1"), l.Addr().(*net.TCPAddr).AddrPort().Port()) // 1 is lo
			s := inPod(t, pod, sockopt.Defaults())
			c, err := dial(s, t.Context(), netip.Addr{}, to)
			for over := time.Now().Add(5 * time.Second); errors.Is(err, unix.ENETUNREACH) && time.Now().Before(over); {
				c, err = dial(s, t.Context(), netip.Addr{}, to) // the kernel is about to know the address
			}
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	}
}
