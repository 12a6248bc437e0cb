package dns

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/warren-mesh/warren/xds/workload"
)

// upstream is a resolver on loopback, UDP and TCP on one port. answer returns the
// messages to send, none for silence.
type upstream struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int64

	mu  sync.Mutex
	ids map[uint16]bool
}

func startUpstream(t *testing.T, answer func(raw []byte, network string) [][]byte) *upstream {
	t.Helper()
	var pc *net.UDPConn
	var l net.Listener
	for range 20 { // the TCP port of the same number may be taken
		var err error
		if pc, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp4", pc.LocalAddr().String()); err == nil {
			break
		}
		_ = pc.Close()
	}
	if l == nil {
		t.Fatal("no port that is free for UDP and TCP")
	}
	u := &upstream{addr: netip.MustParseAddrPort(pc.LocalAddr().String()), ids: make(map[uint16]bool)}
	var work sync.WaitGroup
	work.Go(func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			u.saw(buf, &u.udp)
			for _, m := range answer(buf[:n], "udp") {
				_, _ = pc.WriteToUDPAddrPort(m, from)
			}
		}
	})
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				for {
					raw, err := readMessage(c)
					if err != nil {
						return
					}
					u.saw(raw, &u.tcp)
					for _, m := range answer(raw, "tcp") {
						_, _ = c.Write(framed(m))
					}
				}
			})
		}
	})
	t.Cleanup(func() { _ = pc.Close(); _ = l.Close(); work.Wait() })
	return u
}

func (u *upstream) saw(raw []byte, n *atomic.Int64) {
	n.Add(1)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ids[binary.BigEndian.Uint16(raw)] = true
}

// distinct is how many IDs were seen.
func (u *upstream) distinct() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.ids)
}

// replyWith answers with f's message.
func replyWith(f func(m *dns.Msg, network string)) func([]byte, string) [][]byte {
	return func(raw []byte, network string) [][]byte {
		var q, m dns.Msg
		if q.Unpack(raw) != nil {
			return nil
		}
		m.SetReply(&q)
		f(&m, network)
		out, err := m.Pack()
		if err != nil {
			return nil
		}
		return [][]byte{out}
	}
}

// texts adds n records of 100 bytes.
func texts(n int) func(m *dns.Msg, _ string) {
	return func(m *dns.Msg, _ string) {
		for range n {
			m.Answer = append(m.Answer, &dns.TXT{
				Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 7},
				Txt: []string{string(make([]byte, 100))},
			})
		}
	}
}

func rcode(n int) func(m *dns.Msg, _ string) { return func(m *dns.Msg, _ string) { m.Rcode = n } }

// fakeMesh is a mesh that a test turns on.
type fakeMesh struct {
	v     *workload.View
	known atomic.Bool
	woken chan struct{}
}

func knownMesh() *fakeMesh {
	m := &fakeMesh{v: testView(), woken: make(chan struct{}, 1)}
	m.known.Store(true)
	return m
}

func (m *fakeMesh) Look() (*workload.View, Client, bool) {
	return m.v, Client{Namespace: "app"}, m.known.Load()
}

func (m *fakeMesh) Wait(ctx context.Context) error {
	select {
	case <-m.woken:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// recorder counts what Metrics is told.
type recorder struct {
	mu       sync.Mutex
	outcomes map[Outcome]int
	failed   int
}

func (r *recorder) Query(_ Transport, _ uint16, o Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.outcomes == nil {
		r.outcomes = make(map[Outcome]int)
	}
	r.outcomes[o]++
}

func (r *recorder) Upstream(_ Transport, _ uint16, _ time.Duration, failed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if failed {
		r.failed++
	}
}

func (r *recorder) count(o Outcome) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.outcomes[o]
}

// served is a Server on loopback.
type served struct {
	*Server
	addr    string
	metrics *recorder
	taken   atomic.Int64
}

// serve starts a Server that asks the given resolvers: the ports of loopback
// stand for their addresses.
func serve(t *testing.T, change func(*Config), servers ...*upstream) *served {
	t.Helper()
	s := &served{metrics: &recorder{}}
	var list []netip.AddrPort
	for _, u := range servers {
		list = append(list, u.addr)
	}
	var d net.Dialer
	cfg := Config{
		Zone: Zone{IPv6: true}, Mesh: knownMesh(), Metrics: s.metrics,
		Dial: func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, network, dst.String())
		},
		Resolvers: func() []netip.AddrPort { return list },
		Take:      func() error { s.taken.Add(1); return nil },
		Give:      func() { s.taken.Add(-1) },
		// Generous, for a busy machine; tests that wait for them make them short.
		Limits: Limits{Upstream: time.Minute, Try: 20 * time.Second, Idle: time.Minute, Mesh: time.Minute},
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if s.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	var pc *net.UDPConn
	var l net.Listener
	for range 20 {
		if pc, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp4", pc.LocalAddr().String()); err == nil {
			break
		}
		_ = pc.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.addr = pc.LocalAddr().String()
	var loops sync.WaitGroup
	loops.Go(func() { s.ServePacket(pc) })
	loops.Go(func() { s.ServeStream(l.(*net.TCPListener)) })
	t.Cleanup(func() {
		_ = s.Close()
		loops.Wait()
		if n := s.taken.Load(); n != 0 {
			t.Errorf("%d descriptors are still counted", n)
		}
		if n := len(s.slots) + len(s.conns) + len(s.sockets); n != 0 {
			t.Errorf("%d places are still taken", n)
		}
	})
	return s
}

// ask asks a server; the network is "udp" or "tcp".
func (s *served) ask(t *testing.T, network string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 30 * time.Second, UDPSize: 65535}
	m, _, err := c.Exchange(q, s.addr)
	if err != nil {
		t.Fatalf("%s %v: %v", network, q.Question, err)
	}
	return m
}

func question4(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(name, qtype)
}
