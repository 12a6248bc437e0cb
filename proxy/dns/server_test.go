package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAnswers(t *testing.T) {
	u := startUpstream(t, replyWith(rcode(dns.RcodeNameError)))
	s := serve(t, nil, u)
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			q := question4("Api.Example.com.app.SVC.cluster.local.", dns.TypeA)
			q.SetEdns0(100, true)
			m := s.ask(t, network, q)
			want := "\tCNAME\tApi.Example.com.\n\tA\t240.240.0.1\n"
			var got strings.Builder
			for _, rr := range m.Answer {
				if h := rr.Header(); h.Ttl != 30 || h.Class != dns.ClassINET {
					t.Errorf("header %v", h)
				}
				fields := strings.Fields(rr.String())
				got.WriteString("\t" + strings.Join(fields[3:], "\t") + "\n")
			}
			if d := cmp.Diff(want, got.String()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if n := m.Answer[1].Header().Name; n != "Api.Example.com." {
				t.Errorf("the address is of %s", n)
			}
			if !m.Authoritative || !m.RecursionAvailable || !m.RecursionDesired || m.Question[0] != q.Question[0] {
				t.Errorf("header %+v, question %v", m.MsgHdr, m.Question)
			}
			if opt := m.IsEdns0(); opt == nil || opt.UDPSize() != 512 || !opt.Do() {
				t.Errorf("EDNS is %v", opt)
			}
			m = s.ask(t, network, question4("elsewhere.example.com.", dns.TypeA))
			if m.Rcode != 0 || len(m.Answer) != 0 || !m.Authoritative || m.IsEdns0() != nil {
				t.Errorf("no address: %v", m)
			}
		})
	}
	if n := u.udp.Load() + u.tcp.Load(); n != 0 {
		t.Errorf("the resolver was asked %d times", n)
	}
	if s.metrics.count(Answered) != 2 || s.metrics.count(Empty) != 2 {
		t.Errorf("outcomes %v", s.metrics.outcomes)
	}
}

// What is not ours passes as it came, but for the ID.
func TestForwardsUntouched(t *testing.T) {
	var mu sync.Mutex
	var seen, sent []byte
	u := startUpstream(t, func(raw []byte, _ string) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		seen = bytes.Clone(raw)
		var q dns.Msg
		if err := q.Unpack(raw); err != nil {
			return nil
		}
		m := new(dns.Msg).SetReply(&q)
		m.Answer = []dns.RR{&dns.SRV{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeSRV, Class: 1, Ttl: 3}, Port: 5432, Target: "pg-0.pg.db.svc.cluster.local."}}
		m.Extra = []dns.RR{&dns.RFC3597{Hdr: dns.RR_Header{Name: ".", Rrtype: 65400, Class: 1}, Rdata: "0102"}}
		sent, _ = m.Pack()
		return [][]byte{sent}
	})
	s := serve(t, nil, u)
	for _, network := range []string{"udp", "tcp"} {
		q := question4("_sql._tcp.Pg.db.svc.cluster.local.", dns.TypeSRV)
		q.SetEdns0(1400, false)
		q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte{9}}}
		raw, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		reply := s.raw(t, network, raw)
		mu.Lock()
		if !bytes.Equal(raw[2:], seen[2:]) {
			t.Errorf("%s: asked\n%x, the resolver saw\n%x", network, raw, seen)
		}
		if !bytes.Equal(sent[2:], reply[2:]) || !bytes.Equal(raw[:2], reply[:2]) {
			t.Errorf("%s: answered\n%x, got\n%x", network, sent, reply)
		}
		mu.Unlock()
	}
	if s.metrics.count(Forwarded) != 2 {
		t.Errorf("outcomes %v", s.metrics.outcomes)
	}
}

// raw sends bytes and returns the bytes of the answer.
func (s *served) raw(t *testing.T, network string, m []byte) []byte {
	t.Helper()
	c, err := net.Dial(network, s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if network == "tcp" {
		m = framed(m)
	}
	if _, err := c.Write(m); err != nil {
		t.Fatal(err)
	}
	if network == "tcp" {
		reply, err := readMessage(c)
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	buf := make([]byte, 65535)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// A name that the public DNS might know is answered from the mesh only when it does not.
func TestFallback(t *testing.T) {
	public := func(m *dns.Msg, _ string) {
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: 1}, A: net.IPv4(192, 0, 2, 1)}}
	}
	for _, tt := range []struct {
		name   string
		answer func(*dns.Msg, string)
		want   string
	}{
		{"known", public, "192.0.2.1"},
		{"unknown", rcode(dns.RcodeNameError), "10.0.0.2"},
		{"refused", rcode(dns.RcodeRefused), "10.0.0.2"},
		{"without address", rcode(dns.RcodeSuccess), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, nil, startUpstream(t, replyWith(tt.answer)))
			got := ""
			for _, rr := range s.ask(t, "udp", question4("web.dev.", dns.TypeA)).Answer {
				got += rr.(*dns.A).A.String()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestResolverThatFails(t *testing.T) {
	silent := func([]byte, string) [][]byte { return nil }
	good := startUpstream(t, replyWith(rcode(dns.RcodeNameError)))
	bad := startUpstream(t, replyWith(rcode(dns.RcodeServerFailure)))
	dead := startUpstream(t, silent)
	gone := &upstream{addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), closedPort(t))}
	short := func(c *Config) { c.Limits.Try, c.Limits.Upstream = 50*time.Millisecond, 400*time.Millisecond }
	patient := func(c *Config) { c.Limits.Try = 50 * time.Millisecond }
	for _, tt := range []struct {
		name    string
		change  func(*Config)
		servers []*upstream
		want    int
	}{
		{"the second answers", nil, []*upstream{bad, good}, dns.RcodeNameError},
		{"the first is gone", nil, []*upstream{gone, good}, dns.RcodeNameError},
		{"the first is silent", patient, []*upstream{dead, good}, dns.RcodeNameError},
		{"none but a failure", patient, []*upstream{bad, dead}, dns.RcodeServerFailure},
		{"silence", short, []*upstream{dead}, dns.RcodeServerFailure},
		{"gone", short, []*upstream{gone}, dns.RcodeServerFailure},
		{"none", nil, nil, dns.RcodeServerFailure},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(tt.name+" "+network, func(t *testing.T) {
				s := serve(t, tt.change, tt.servers...)
				if m := s.ask(t, network, question4("example.org.", dns.TypeMX)); m.Rcode != tt.want {
					t.Errorf("got %s", dns.RcodeToString[m.Rcode])
				}
			})
		}
	}
	if dead.udp.Load() < 4 {
		t.Errorf("a silent resolver was asked %d times only", dead.udp.Load())
	}
}

func closedPort(t *testing.T) uint16 {
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.LocalAddr().String()).Port()
}

// A lost datagram is sent again.
func TestRetries(t *testing.T) {
	var n int
	answer := replyWith(rcode(dns.RcodeNameError))
	u := startUpstream(t, func(raw []byte, network string) [][]byte {
		if n++; n < 3 {
			return nil
		}
		return answer(raw, network)
	})
	s := serve(t, func(c *Config) { c.Limits.Try = 20 * time.Millisecond }, u)
	if m := s.ask(t, "udp", question4("example.org.", dns.TypeA)); m.Rcode != dns.RcodeNameError {
		t.Errorf("got %v", m)
	}
	if n := u.distinct(); n != 1 {
		t.Errorf("%d IDs for one query", n)
	}
}

// Whoever answers instead of the resolver has to guess.
func TestForgedAnswers(t *testing.T) {
	right := replyWith(rcode(dns.RcodeNameError))
	forged := replyWith(rcode(dns.RcodeSuccess))
	wrong := map[string]func(m []byte) []byte{
		"ID":       func(m []byte) []byte { m[0] ^= 1; return m },
		"question": func(m []byte) []byte { m[headerSize+1] ^= 1; return m },
		"type":     func(m []byte) []byte { m[len(m)-3] ^= 1; return m },
		"a query":  func(m []byte) []byte { m[2] &= 0x7f; return m },
		"opcode":   func(m []byte) []byte { m[2] ^= 0x20; return m },
		"short":    func(m []byte) []byte { return m[:11] },
		"empty":    func(m []byte) []byte { return m[:0] },
		"bare":     func(m []byte) []byte { clear(m[4:]); return m[:headerSize] },
		"loop":     func(m []byte) []byte { return append(m[:headerSize], 0xc0, headerSize, 0, 1, 0, 1) },
	}
	for name, f := range wrong {
		t.Run(name, func(t *testing.T) {
			u := startUpstream(t, func(raw []byte, network string) [][]byte {
				return append([][]byte{f(forged(raw, network)[0])}, right(raw, network)...)
			})
			s := serve(t, nil, u)
			if m := s.ask(t, "udp", question4("example.org.", dns.TypeA)); m.Rcode != dns.RcodeNameError {
				t.Errorf("the forged answer was taken: %v", m)
			}
		})
	}
	t.Run("many", func(t *testing.T) {
		u := startUpstream(t, func(raw []byte, network string) [][]byte {
			return slices.Repeat([][]byte{wrong["ID"](forged(raw, network)[0])}, strays)
		})
		s := serve(t, func(c *Config) { c.Limits.Upstream = 500 * time.Millisecond }, u)
		if m := s.ask(t, "udp", question4("example.org.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("got %v", m)
		}
		if u.udp.Load() < 2 {
			t.Error("the socket was not given up")
		}
	})
}

func TestIDsAndPortsAreFresh(t *testing.T) {
	u := startUpstream(t, replyWith(rcode(dns.RcodeNameError)))
	var mu sync.Mutex
	ports := make(map[string]bool)
	s := serve(t, func(c *Config) {
		dial := c.Dial
		c.Dial = func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
			conn, err := dial(ctx, network, dst)
			if err == nil {
				mu.Lock()
				ports[conn.LocalAddr().String()] = true
				mu.Unlock()
			}
			return conn, err
		}
	}, u)
	for range 50 {
		q := question4("example.org.", dns.TypeA)
		q.Id = 7
		if m := s.ask(t, "udp", q); m.Id != 7 {
			t.Fatalf("ID %d", m.Id)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if n := u.distinct(); n < 45 || len(ports) < 25 {
		t.Errorf("%d IDs and %d ports of 50", n, len(ports))
	}
}

func TestTruncation(t *testing.T) {
	cut := func(m *dns.Msg, network string) {
		texts(20)(m, network)
		if network == "udp" {
			m.Answer, m.Truncated = m.Answer[:3], true
		}
	}
	for _, tt := range []struct {
		name    string
		answer  func(*dns.Msg, string)
		size    uint16 // 0: no EDNS
		network string
		tc      bool
		records int
	}{
		{"fits", texts(3), 0, "udp", false, 3},
		{"longer than the client takes", texts(9), 600, "udp", true, 0},
		{"longer than 512", texts(9), 0, "udp", true, 0},
		{"longer than 512, EDNS", texts(9), 1400, "udp", false, 9},
		{"over TCP", texts(20), 0, "tcp", false, 20},
		{"cut by the resolver", cut, 0, "udp", true, 3},
		{"cut by the resolver, for a client that takes more", cut, 4096, "udp", false, 20},
		{"cut by the resolver, and too long even so", cut, 1500, "udp", true, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, func(c *Config) { c.Limits.Try = time.Second }, startUpstream(t, replyWith(tt.answer)))
			q := question4("example.org.", dns.TypeTXT)
			if tt.size > 0 {
				q.SetEdns0(tt.size, false)
			}
			m := s.ask(t, tt.network, q)
			if m.Truncated != tt.tc || len(m.Answer) != tt.records || m.Question[0] != q.Question[0] {
				t.Errorf("truncated %v, %d records, question %v", m.Truncated, len(m.Answer), m.Question)
			}
		})
	}
}

// A headless service of many endpoints.
func TestManyAddresses(t *testing.T) {
	var q query
	d := Decision{Verdict: Local}
	for i := range 3000 {
		d.Addrs = append(d.Addrs, netip.AddrFrom4([4]byte{10, 3, byte(i >> 8), byte(i)}))
	}
	for _, tt := range []struct {
		transport Transport
		edns      uint16
		tc        bool
		least     int
	}{{UDP, 0, true, 25}, {UDP, 1232, true, 70}, {TCP, 0, false, maxAddrs}} {
		ask := question4("pg.db.svc.cluster.local.", dns.TypeA)
		if tt.edns > 0 {
			ask.SetEdns0(tt.edns, false)
		}
		raw, _ := ask.Pack()
		q, _ = parse(raw, tt.transport)
		out := q.success(d, nil)
		var m dns.Msg
		if err := m.Unpack(out); err != nil {
			t.Fatal(err)
		}
		if m.Truncated != tt.tc || len(m.Answer) < tt.least || tt.transport == UDP && len(out) > max(512, int(tt.edns)) {
			t.Errorf("%v: truncated %v, %d records in %d bytes", tt, m.Truncated, len(m.Answer), len(out))
		}
	}
}

func TestBadQueries(t *testing.T) {
	good, _ := question4("web.app.svc.cluster.local.", dns.TypeA).Pack()
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	twoOPT := question4("web.app.svc.cluster.local.", dns.TypeA)
	twoOPT.SetEdns0(1232, false).Extra = append(twoOPT.Extra, twoOPT.Extra[0])
	version := question4("web.app.svc.cluster.local.", dns.TypeA)
	version.SetEdns0(1232, false).IsEdns0().SetVersion(3)
	pack := func(m *dns.Msg) []byte { b, _ := m.Pack(); return b }
	u := startUpstream(t, replyWith(rcode(dns.RcodeNameError)))
	s := serve(t, nil, u)
	for _, tt := range []struct {
		name string
		raw  []byte
		want int // -1: silence
	}{
		{"a good one", good, dns.RcodeSuccess},
		{"short", good[:headerSize-1], -1},
		{"an answer", change(func(b []byte) []byte { b[2] |= 0x80; return b }), -1},
		{"header alone", good[:headerSize], dns.RcodeFormatError},
		{"no question", change(func(b []byte) []byte { b[5] = 0; return b[:headerSize] }), dns.RcodeFormatError},
		{"two questions", change(func(b []byte) []byte { b[5] = 2; return append(b, b[headerSize:]...) }), dns.RcodeFormatError},
		{"cut short", good[:len(good)-1], dns.RcodeFormatError},
		{"a name that is its own end", append(bytes.Clone(good[:headerSize]), 0xc0, headerSize, 0, 1, 0, 1), dns.RcodeFormatError},
		{"a name that leads ahead", append(bytes.Clone(good[:headerSize]), 0xc0, headerSize+6, 0, 1, 0, 1, 3, 'w', 'e', 'b', 0), dns.RcodeFormatError},
		{"a name that ends in the header", append(bytes.Clone(good[:headerSize]), 3, 'w', 'e', 'b', 0xc0, 6, 0, 1, 0, 1), dns.RcodeFormatError},
		{"two EDNS", pack(twoOPT), dns.RcodeFormatError},
		{"EDNS version 3", pack(version), dns.RcodeBadVers},
		{"a notification", change(func(b []byte) []byte { b[2] |= dns.OpcodeNotify << 3; return b }), dns.RcodeNotImplemented},
		{"too long", append(bytes.Clone(good), make([]byte, maxQuery)...), dns.RcodeFormatError},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(tt.name+" "+network, func(t *testing.T) {
				if tt.want < 0 {
					s.silent(t, network, tt.raw, good)
					return
				}
				var m dns.Msg
				reply := s.raw(t, network, tt.raw)
				if err := m.Unpack(reply); err != nil || m.Rcode != tt.want || !m.Response || !bytes.Equal(reply[:2], tt.raw[:2]) {
					t.Errorf("got %v, %v", err, m)
				}
			})
		}
	}
	if u.udp.Load()+u.tcp.Load() > 0 {
		t.Error("the resolver was asked")
	}
}

// silent checks that there is no answer: to the next query comes the first one,
// or the connection ends.
func (s *served) silent(t *testing.T, network string, raw, good []byte) {
	t.Helper()
	c, err := net.Dial(network, s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	good = bytes.Clone(good)
	good[0], good[1] = 0xab, 0xcd
	if network == "tcp" {
		raw = framed(raw)
		_, _ = c.Write(raw)
		if _, err := readMessage(c); !errors.Is(err, io.EOF) {
			t.Errorf("got %v", err)
		}
		return
	}
	_, _ = c.Write(raw)
	_, _ = c.Write(good)
	buf := make([]byte, 512)
	if _, err := c.Read(buf); err != nil || buf[0] != 0xab || buf[1] != 0xcd {
		t.Errorf("got %x, %v", buf[:2], err)
	}
}

// What is signed or of another class is not ours to answer.
func TestSealedQueriesPass(t *testing.T) {
	signed := question4("web.app.svc.cluster.local.", dns.TypeA)
	signed.Extra = []dns.RR{&dns.TSIG{Hdr: dns.RR_Header{Name: "key.", Rrtype: dns.TypeTSIG, Class: dns.ClassANY}, Algorithm: dns.HmacSHA256, MAC: "00", MACSize: 1}}
	chaos := question4("web.app.svc.cluster.local.", dns.TypeA)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	for name, q := range map[string]*dns.Msg{"signed": signed, "chaos": chaos} {
		u := startUpstream(t, func(raw []byte, _ string) [][]byte {
			out := bytes.Clone(raw)
			out[2] |= 0x80
			return [][]byte{out}
		})
		s := serve(t, nil, u)
		raw, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if s.raw(t, "udp", raw); u.udp.Load() != 1 {
			t.Errorf("%s: the resolver was not asked", name)
		}
	}
}

// The resolver that the pod asked is asked, and no other.
func TestAsksWhomThePodAsked(t *testing.T) {
	theirs := startUpstream(t, replyWith(rcode(dns.RcodeNameError)))
	ours := startUpstream(t, replyWith(rcode(dns.RcodeSuccess)))
	for _, tt := range []struct {
		name, asked string
		want        int
	}{
		{"known", "192.0.2.53:53", dns.RcodeNameError},
		{"mapped", "[::ffff:192.0.2.53]:53", dns.RcodeNameError},
		{"unknown", "", dns.RcodeSuccess},
		{"itself", "127.0.0.1:15053", dns.RcodeSuccess},
		{"nobody", "0.0.0.0:53", dns.RcodeSuccess},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := func() (netip.AddrPort, error) {
				if tt.asked == "" {
					return netip.AddrPort{}, errors.New("unknown")
				}
				return netip.MustParseAddrPort(tt.asked), nil
			}
			s := serve(t, func(c *Config) {
				dial := c.Dial
				c.Dial = func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
					if dst == netip.MustParseAddrPort("192.0.2.53:53") {
						dst = theirs.addr
					}
					return dial(ctx, network, dst)
				}
				c.AskedTCP = func(net.Conn) (netip.AddrPort, error) { return asked() }
				c.AskedUDP = func(client, local netip.AddrPort) (netip.AddrPort, error) {
					if !client.Addr().IsLoopback() || local != ours.addr && local.Port() == 0 {
						t.Errorf("from %s to %s", client, local)
					}
					return asked()
				}
			}, ours)
			for _, network := range []string{"udp", "tcp"} {
				if m := s.ask(t, network, question4("example.org.", dns.TypeA)); m.Rcode != tt.want {
					t.Errorf("%s: got %s", network, dns.RcodeToString[m.Rcode])
				}
			}
			update := new(dns.Msg).SetUpdate("example.org.")
			got := s.ask(t, "udp", update).Rcode
			if want := map[bool]int{true: dns.RcodeNameError, false: dns.RcodeNotImplemented}[tt.want == dns.RcodeNameError]; got != want {
				t.Errorf("an update: got %s", dns.RcodeToString[got])
			}
		})
	}
}

func TestMeshNotKnown(t *testing.T) {
	mesh := knownMesh()
	mesh.known.Store(false)
	s := serve(t, func(c *Config) { c.Mesh = mesh })
	done := make(chan *dns.Msg)
	go func() { done <- s.ask(t, "udp", question4("web.app.svc.cluster.local.", dns.TypeA)) }()
	eventually(t, func() bool { return len(s.slots) == 1 })
	mesh.known.Store(true)
	mesh.woken <- struct{}{}
	if m := <-done; len(m.Answer) != 1 {
		t.Errorf("got %v", m)
	}

	never := knownMesh()
	never.known.Store(false)
	s = serve(t, func(c *Config) { c.Mesh, c.Limits.Mesh = never, 20*time.Millisecond })
	if m := s.ask(t, "udp", question4("web.app.svc.cluster.local.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", m)
	}
	if s.metrics.count(Unknown) != 1 {
		t.Errorf("outcomes %v", s.metrics.outcomes)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
	}
}

// A flood of queries to a dead resolver holds up neither the mesh's answers nor
// more than its share.
func TestFlood(t *testing.T) {
	dead := startUpstream(t, func([]byte, string) [][]byte { return nil })
	s := serve(t, func(c *Config) { c.Limits.InFlight = 8 }, dead)
	c, err := net.Dial("udp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 50 {
		raw, _ := question4(fmt.Sprintf("x%d.example.org.", i), dns.TypeA).Pack()
		_, _ = c.Write(raw)
	}
	eventually(t, func() bool { return s.metrics.count(Overloaded) == 42 })
	if n := s.taken.Load(); n > 8 {
		t.Errorf("%d sockets", n)
	}
	for _, network := range []string{"udp", "tcp"} {
		if m := s.ask(t, network, question4("web.app.svc.cluster.local.", dns.TypeA)); len(m.Answer) != 1 {
			t.Errorf("%s: got %v", network, m)
		}
		if m := s.ask(t, network, question4("example.org.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: got %v", network, m)
		}
	}
}

func TestConnections(t *testing.T) {
	u := startUpstream(t, replyWith(rcode(dns.RcodeNameError)))
	s := serve(t, func(c *Config) { c.Limits.Connections = 2 }, u)
	dial := func() net.Conn {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	first := dial()
	// Many queries in one write, their answers in any order.
	var all []byte
	want := make(map[uint16]bool)
	for i := range 40 {
		name := "example.org."
		if i%2 == 0 {
			name = "web.app.svc.cluster.local."
		}
		q := question4(name, dns.TypeA)
		q.Id = uint16(i)
		raw, _ := q.Pack()
		all, want[q.Id] = append(all, framed(raw)...), true
	}
	_, _ = first.Write(all)
	for range 40 {
		reply, err := readMessage(first)
		if err != nil {
			t.Fatal(err)
		}
		delete(want, uint16(reply[0])<<8|uint16(reply[1]))
	}
	if len(want) > 0 {
		t.Errorf("no answer to %v", want)
	}
	dial()
	eventually(t, func() bool { return len(s.conns) == 2 })
	if _, err := readMessage(dial()); err == nil {
		t.Error("a third connection is served")
	}
	_ = first.Close()
	eventually(t, func() bool { return len(s.conns) == 1 })
	raw, _ := question4("web.app.svc.cluster.local.", dns.TypeA).Pack()
	third := dial()
	_, _ = third.Write(framed(raw))
	if _, err := readMessage(third); err != nil {
		t.Errorf("there is room again: %v", err)
	}
}

func TestIdleConnectionEnds(t *testing.T) {
	s := serve(t, func(c *Config) { c.Limits.Idle = 50 * time.Millisecond })
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = c.Write([]byte{0, 9, 1}) // the rest never comes
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestShutdownLetsQueriesEnd(t *testing.T) {
	hold := make(chan struct{})
	answer := replyWith(rcode(dns.RcodeNameError))
	u := startUpstream(t, func(raw []byte, network string) [][]byte { <-hold; return answer(raw, network) })
	for _, network := range []string{"udp", "tcp"} {
		s := serve(t, nil, u)
		got := make(chan *dns.Msg)
		go func() { got <- s.ask(t, network, question4("example.org.", dns.TypeA)) }()
		eventually(t, func() bool { return len(s.slots) == 1 })
		down := make(chan struct{})
		go func() { s.Shutdown(context.Background()); close(down) }()
		eventually(t, func() bool { return s.soft.Err() != nil })
		hold <- struct{}{}
		if m := <-got; m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: got %v", network, m)
		}
		<-down
	}
}

func TestCloseEndsAll(t *testing.T) {
	dead := startUpstream(t, func([]byte, string) [][]byte { return nil })
	s := serve(t, nil, dead)
	var conns []net.Conn
	raw, _ := question4("example.org.", dns.TypeA).Pack()
	for _, network := range []string{"udp", "tcp", "tcp"} {
		c, err := net.Dial(network, s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if m := raw; network == "tcp" {
			_, _ = c.Write(framed(m))
		} else {
			_, _ = c.Write(m)
		}
		conns = append(conns, c)
	}
	eventually(t, func() bool { return len(s.slots) == 3 })
	_ = s.Close()
	_ = conns[1].SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadAll(conns[1]); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", s.addr); err == nil {
		_ = c.Close()
		t.Error("it still listens")
	}
}

func TestTransfer(t *testing.T) {
	u := startUpstream(t, func(raw []byte, network string) [][]byte {
		return slices.Repeat(replyWith(texts(300))(raw, network), 5)
	})
	s := serve(t, nil, u)
	q := new(dns.Msg).SetAxfr("example.org.")
	raw, _ := q.Pack()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = c.Write(framed(raw))
	for i := range 5 {
		m, err := readMessage(c)
		if err != nil || len(m) < 30000 || !bytes.Equal(m[:2], raw[:2]) {
			t.Fatalf("message %d: %d bytes, %v", i, len(m), err)
		}
	}
	_ = c.Close()
	eventually(t, func() bool { return len(s.conns) == 0 })
}

// A server may take longer over a zone than a client's silence is borne elsewhere, which
// may have closed its half as well.
func TestLongTransfer(t *testing.T) {
	const patience = 400 * time.Millisecond
	for _, half := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		slow := make(chan struct{})
		go func() {
			defer close(slow)
			up, err := l.Accept()
			if err != nil {
				return
			}
			defer up.Close()
			m, err := readMessage(up)
			for range 12 { // within its limit each, all together far beyond
				if err != nil {
					return
				}
				time.Sleep(patience / 6)
				_, err = up.Write(framed(m))
			}
		}()
		s := serve(t, func(c *Config) {
			c.Limits.Transfer, c.Limits.Idle = patience, 10*time.Second
			c.Resolvers = func() []netip.AddrPort { return []netip.AddrPort{l.Addr().(*net.TCPAddr).AddrPort()} }
		})
		raw, _ := new(dns.Msg).SetAxfr("example.org.").Pack()
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = c.Write(framed(raw))
		if half {
			_ = c.(*net.TCPConn).CloseWrite()
		}
		for i := range 12 {
			if _, err := readMessage(c); err != nil {
				t.Fatalf("half closed %v: message %d: %v", half, i, err)
			}
		}
		<-slow
		_ = c.Close()
		eventually(t, func() bool { return len(s.conns) == 0 })
	}
}

func TestLookup(t *testing.T) {
	u := startUpstream(t, replyWith(func(m *dns.Msg, _ string) {
		if m.Question[0].Name != "www.example.org." {
			m.Rcode = dns.RcodeNameError
			return
		}
		h := func(n string, rr uint16) dns.RR_Header { return dns.RR_Header{Name: n, Rrtype: rr, Class: 1} }
		m.Answer = []dns.RR{
			&dns.CNAME{Hdr: h("www.example.org.", dns.TypeCNAME), Target: "a.example.org."},
			&dns.A{Hdr: h("evil.example.org.", dns.TypeA), A: net.IPv4(192, 0, 2, 66)},
			&dns.A{Hdr: h("a.example.org.", dns.TypeA), A: net.IPv4(192, 0, 2, 1)},
		}
	}))
	s := serve(t, nil, u)
	for host, want := range map[string]string{
		"web": "[10.0.0.1]", "www.example.org": "[192.0.2.1]", "elsewhere.example.com": "error", "nobody.example.org": "error", strings.Repeat("a", 64) + ".b": "error",
	} {
		got, err := s.Lookup(t.Context(), host, false)
		if text := fmt.Sprint(got); err == nil && text != want || err != nil && want != "error" {
			t.Errorf("%s: %v, %v", host, got, err)
		}
	}
}
