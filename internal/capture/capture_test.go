package capture

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// waitFor waits for what was captured; frames arrive after the bytes were read.
func waitFor(t *testing.T, c *Capture, ok func(Counts) bool) Counts {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		n := c.Counts()
		if ok(n) {
			return n
		}
		if time.Now().After(deadline) {
			t.Fatalf("counted %+v", n)
		}
	}
}

// send carries bytes from one pod to another, after wrapping the connection.
func send(t *testing.T, from, to *nstest.Pod, addr netip.AddrPort, text string, wrap func(net.Conn) net.Conn) {
	t.Helper()
	l, err := to.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	c, err := from.Dial(t.Context(), "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	c = wrap(c)
	c.SetDeadline(time.Now().Add(2 * time.Second))
	io.WriteString(c, text) // a TLS client's first bytes are its hello, whoever listens
	c.Close()
	<-done
}

func plain(c net.Conn) net.Conn { return c }

// hello sends a ClientHello and leaves.
func hello(t *testing.T) func(net.Conn) net.Conn {
	return func(c net.Conn) net.Conn {
		c.SetDeadline(time.Now().Add(50 * time.Millisecond)) // nobody answers
		if err := tls.Client(c, &tls.Config{ServerName: "x"}).Handshake(); err == nil {
			t.Error("the sink shook hands")
		}
		return c
	}
}

func TestCounts(t *testing.T) {
	nstest.LeakCheck(t)
	n := nstest.New(t)
	n1, n2 := n.Node("n1"), n.Node("n2")
	a, b := n1.Pod("a"), n2.Pod("b")
	c, err := Open(n.NS, "node1", 15008, netip.PrefixFrom(n2.IP4, 32))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, dst := range []netip.Addr{b.IP4, b.IP6} {
		before := c.Counts()
		send(t, a, b, netip.AddrPortFrom(dst, 15008), "", hello(t))
		got := waitFor(t, c, func(n Counts) bool { return n.Since(before).TLS > 100 }).Since(before)
		if got.TLSFlows != 1 || got.NotTLS != 0 || got.OtherTCP != 0 {
			t.Errorf("TLS to %s: counted %+v", dst, got)
		}

		before = c.Counts()
		c.Mark("secret")
		send(t, a, b, netip.AddrPortFrom(dst, 15008), "a secret in plain text", plain)
		got = waitFor(t, c, func(n Counts) bool { return n.Since(before).NotTLS > 0 }).Since(before)
		if got.NotTLS != 22 || got.TLS != 0 || got.TLSFlows != 0 || got.Marker != 1 {
			t.Errorf("plain text to %s: counted %+v", dst, got)
		}

		before = c.Counts()
		send(t, a, b, netip.AddrPortFrom(dst, 80), "hello", plain)
		got = waitFor(t, c, func(n Counts) bool { return n.Since(before).OtherTCP > 0 }).Since(before)
		if got.OtherTCP != 5 || got.OtherPort[80] != 5 || got.NotTLS != 0 || got.Marker != 0 {
			t.Errorf("another port of %s: counted %+v", dst, got)
		}
	}
	// What is ignored leaves no trace, though it crossed before what does.
	before := c.Counts()
	node := &nstest.Pod{NS: n2.NS}
	send(t, a, node, netip.AddrPortFrom(n2.IP4, 80), "to the control plane", plain)
	send(t, a, b, netip.AddrPortFrom(b.IP4, 80), "x", plain)
	got := waitFor(t, c, func(n Counts) bool { return n.Since(before).OtherTCP > 0 }).Since(before)
	if got.OtherTCP != 1 || got.Dropped != 0 {
		t.Errorf("counted %+v, want the one byte that is not ignored", got)
	}
}

func TestOnlyTheInterface(t *testing.T) {
	nstest.LeakCheck(t)
	n := nstest.New(t)
	a, b, other := n.Node("n1").Pod("a"), n.Node("n2").Pod("b"), n.Node("n3")
	c, err := Open(n.NS, "node3", 15008, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// Also while captures begin.
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		send(t, a, b, netip.AddrPortFrom(b.IP4, 81), "", func(c net.Conn) net.Conn {
			for buf := make([]byte, 1000); ; {
				select {
				case <-stop:
					return c
				default:
					c.Write(buf)
				}
			}
		})
	}()
	for range 20 {
		begun, err := Open(n.NS, "node3", 15008, netip.Prefix{})
		if err != nil {
			t.Fatal(err)
		}
		// What was queued while it began is read before this.
		send(t, a, &nstest.Pod{NS: other.NS}, netip.AddrPortFrom(other.IP4, 80), "x", plain)
		got := waitFor(t, begun, func(n Counts) bool { return n.OtherPort[80] > 0 })
		begun.Close()
		if got.OtherTCP != 1 {
			t.Fatalf("counted %+v, want one byte", got)
		}
	}
	close(stop)
	<-stopped
	before := waitFor(t, c, func(n Counts) bool { return n.OtherTCP >= 20 })
	send(t, a, b, netip.AddrPortFrom(b.IP4, 80), "past it", plain)
	send(t, a, &nstest.Pod{NS: other.NS}, netip.AddrPortFrom(other.IP4, 80), "x", plain)
	if got := waitFor(t, c, func(n Counts) bool { return n.OtherTCP > before.OtherTCP }).Since(before); got.OtherTCP != 1 {
		t.Errorf("counted %+v, want one byte", got)
	}
	if c, err := Open(n.NS, "none", 1, netip.Prefix{}); err == nil {
		c.Close()
		t.Error("captured on an interface that is not there")
	}
}

// frame makes an IPv4 TCP frame.
func frame(total, ipHead, tcpHead int, payload string) []byte {
	b := make([]byte, 14, 128)
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IP)
	ip := make([]byte, 20)
	ip[0], ip[9] = byte(0x40|ipHead/4), unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(ip[2:], uint16(total))
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, 1234)
	binary.BigEndian.PutUint16(tcp[2:], 15008)
	tcp[12] = byte(tcpHead / 4 << 4)
	return append(append(append(b, ip...), tcp...), payload...)
}

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		in   []byte
		want string
		ok   bool
	}{
		{"empty", nil, "", false},
		{"whole", frame(45, 20, 20, "hello"), "hello", true},
		{"padded, as short Ethernet frames are", frame(45, 20, 20, "hello\x00\x00\x00"), "hello", true},
		{"cut", frame(46, 20, 20, "hello"), "", false},
		{"a header shorter than there is", frame(45, 16, 20, "hello"), "", false},
		{"a TCP header shorter than there is", frame(45, 20, 16, "hello"), "", false},
		{"a TCP header longer than the packet", frame(45, 20, 60, "hello"), "", false},
		{"a total shorter than the header", frame(10, 20, 20, "hello"), "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, dst, payload, ok := parse(tt.in)
			if ok != tt.ok || string(payload) != tt.want || ok && dst.Port() != 15008 {
				t.Errorf("parse = %s, %q, %v", dst, payload, ok)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(frame(45, 20, 20, "hello"))
	f.Add([]byte{12: 0x86, 13: 0xdd, 53: 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, payload, ok := parse(b); ok && len(payload) > len(b) {
			t.Error("more payload than there was")
		}
	})
}

func TestClientHello(t *testing.T) {
	for text, want := range map[string]bool{
		"\x16\x03\x01\x00\x05\x01": true, "\x16\x03\x01\x00\x05\x02": false, "\x17\x03\x03\x00\x05\x01": false,
		"\x16\x03\x01": false, "GET / HTTP/1.1": false, "": false,
	} {
		if clientHello([]byte(text)) != want {
			t.Errorf("clientHello(%q) is not %v", text, want)
		}
	}
}

// A Capture that is closed while nothing crosses must not wait for a frame.
func TestClose(t *testing.T) {
	nstest.LeakCheck(t)
	n := nstest.New(t)
	n.Node("n1")
	c, err := Open(n.NS, "node1", 15008, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err == nil {
		t.Errorf("closed twice: %v, want %v", err, os.ErrClosed)
	}
}
