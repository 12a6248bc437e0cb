package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const patience = 20 * time.Second

// upstream is a resolver whose zone is a map from "name type" to records, or to
// the name of a response code.
type upstream struct {
	addr netip.AddrPort

	mu    sync.Mutex
	zone  map[string]string
	asked map[string]int
	gate  chan struct{} // answers wait for it; nil: they do not
	forge func(*dns.Msg)
}

func serve(t *testing.T, zone map[string]string) *upstream {
	t.Helper()
	u := &upstream{zone: zone, asked: map[string]int{}}
	pc, l := samePort(t)
	u.addr = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: u}, {Listener: l, Handler: u}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go s.ActivateAndServe()
		<-up
		t.Cleanup(func() { s.Shutdown() })
	}
	return u
}

func (u *upstream) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	name := strings.ToLower(q.Question[0].Name) + " " + dns.TypeToString[q.Question[0].Qtype]
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	u.mu.Lock()
	u.asked[name]++
	if !udp {
		u.asked[name+" tcp"]++
	}
	text, ok := u.zone[name]
	gate, forge := u.gate, u.forge
	u.mu.Unlock()
	if gate != nil {
		<-gate
	}
	m := new(dns.Msg).SetReply(q)
	code, isCode := dns.StringToRcode[text]
	switch {
	case !ok:
		m.Rcode = dns.RcodeNameError
		soa, _ := dns.NewRR("example. 60 IN SOA ns.example. host.example. 1 2 3 4 20")
		m.Ns = []dns.RR{soa}
	case isCode:
		m.Rcode = code
	case udp && strings.HasPrefix(text, "TC "):
		m.Truncated = true
	default:
		for line := range strings.SplitSeq(strings.TrimPrefix(text, "TC "), "\n") {
			if rr, err := dns.NewRR(line); err == nil && rr != nil {
				m.Answer = append(m.Answer, rr)
			}
		}
	}
	if forge != nil {
		forge(m)
	}
	w.WriteMsg(m)
}

func (u *upstream) set(name, records string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if records == "" {
		delete(u.zone, name)
		return
	}
	u.zone[name] = records
}

func (u *upstream) change(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
}

func (u *upstream) count(name string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.asked[name]
}

// clock is the time that a resolver sees.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }
func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	c.t = c.t.Add(d)
	c.mu.Unlock()
}

func resolver(t *testing.T, cfg Config) (*Resolver, *clock) {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = patience
	}
	r := New(cfg)
	c := &clock{t: time.Unix(1_000_000, 0)}
	r.now = c.now
	t.Cleanup(r.Close)
	return r, c
}

var both = Families{IPv4: true, IPv6: true, Prefer4: true}

func TestResolve(t *testing.T) {
	u := serve(t, map[string]string{
		"db.example. A":     "db.example. 60 A 192.0.2.1\ndb.example. 60 A 192.0.2.2",
		"db.example. AAAA":  "db.example. 60 AAAA 2001:db8::1",
		"six.example. A":    "NOERROR",
		"six.example. AAAA": "six.example. 60 AAAA 2001:db8::6",
		"alias.example. A":  "alias.example. 60 CNAME b.example.\nb.example. 60 CNAME c.example.\nc.example. 60 A 192.0.2.3\nother.example. 60 A 192.0.2.9",
		"big.example. A":    "TC big.example. 60 A 192.0.2.4",
		"odd.example. A":    "odd.example. 60 A 0.0.0.0\nodd.example. 60 A 224.0.0.1\nodd.example. 60 AAAA 2001:db8::2\nodd.example. 60 A 192.0.2.5",
		"broken.example. A": "SERVFAIL",
		"_under-score.x. A": "_under-score.x. 60 A 192.0.2.6",
	})
	r, _ := resolver(t, Config{Servers: []netip.AddrPort{u.addr}})
	for _, tt := range []struct {
		host string
		f    Families
		want string
		err  string
	}{
		{host: "db.example", f: both, want: "[192.0.2.1 192.0.2.2]"},
		{host: "DB.Example.", f: Families{IPv4: true, IPv6: true}, want: "[2001:db8::1]"},
		{host: "six.example", f: both, want: "[2001:db8::6]"},
		{host: "alias.example", f: both, want: "[192.0.2.3]"},
		{host: "big.example", f: Families{IPv4: true}, want: "[192.0.2.4]"},
		{host: "odd.example", f: Families{IPv4: true}, want: "[192.0.2.5]"},
		{host: "_under-score.x", f: both, want: "[192.0.2.6]"},
		{host: "six.example", f: Families{IPv4: true}, err: "six.example: no A/AAAA records"},
		{host: "nope.example", f: both, err: "nope.example: no A/AAAA records: the name does not exist"},
		{host: "broken.example", f: both, err: "broken.example: DNS server " + u.addr.String() + ": it answers SERVFAIL"},
		{host: "db.example", err: "db.example: no A/AAAA records of a family that can be used"},
		{host: "", f: both, err: `"" is no hostname that can be resolved`},
		{host: "*.example", f: both, err: `"*.example" is no hostname that can be resolved`},
		{host: "a b", f: both, err: "is no hostname"},
		{host: strings.Repeat("a", 64) + ".example", f: both, err: "is no hostname"},
		{host: strings.Repeat("a.", 200), f: both, err: "is no hostname"},
	} {
		got, err := r.Resolve(t.Context(), tt.host, tt.f)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%q: %v, %v; want error %q", tt.host, got, err, tt.err)
			}
			continue
		}
		if err != nil || fmt.Sprint(got) != tt.want {
			t.Errorf("%q %+v: %v, %v; want %s", tt.host, tt.f, got, err, tt.want)
		}
	}
	if u.count("big.example. A tcp") != 1 {
		t.Error("an answer that was cut off was not asked for by TCP")
	}
}

// An answer is kept as long as it says, within bounds, and no longer.
func TestTTL(t *testing.T) {
	for _, tt := range []struct {
		name, records string
		kept          time.Duration
	}{
		{"its own", "x.example. 60 A 192.0.2.1\nx.example. 30 A 192.0.2.2", 30 * time.Second},
		{"of an alias", "x.example. 20 CNAME y.example.\ny.example. 60 A 192.0.2.1", 20 * time.Second},
		{"none", "x.example. 0 A 192.0.2.1", minTTL},
		{"too long", "x.example. 999999 A 192.0.2.1", maxTTL},
		{"of a name that does not exist", "", 20 * time.Second},
		{"of a failure", "SERVFAIL", failureTTL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			zone := map[string]string{}
			if tt.records != "" {
				zone["x.example. A"] = tt.records
			}
			u := serve(t, zone)
			r, c := resolver(t, Config{Servers: []netip.AddrPort{u.addr}})
			ask := func() int {
				r.Resolve(t.Context(), "x.example", Families{IPv4: true})
				return u.count("x.example. A")
			}
			first := ask()
			c.pass(tt.kept - time.Millisecond)
			if n := ask(); n != first {
				t.Errorf("asked again before %s were over", tt.kept)
			}
			c.pass(time.Millisecond)
			if n := ask(); n == first {
				t.Errorf("not asked again after %s", tt.kept)
			}
		})
	}
}

// An answer serves on when the resolvers fail, but not for ever, and not when the
// name is gone.
func TestStale(t *testing.T) {
	u := serve(t, map[string]string{"x.example. A": "x.example. 10 A 192.0.2.1"})
	r, c := resolver(t, Config{Servers: []netip.AddrPort{u.addr}})
	ask := func() error { _, err := r.Resolve(t.Context(), "x.example", Families{IPv4: true}); return err }
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	u.set("x.example. A", "SERVFAIL")
	c.pass(11 * time.Second)
	if err := ask(); err != nil {
		t.Errorf("while resolvers fail: %v", err)
	}
	c.pass(staleFor)
	if err := ask(); err == nil {
		t.Error("an old answer serves for ever")
	}
	u.set("x.example. A", "x.example. 10 A 192.0.2.1")
	c.pass(failureTTL)
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	u.set("x.example. A", "")
	c.pass(11 * time.Second)
	if err := ask(); !errors.Is(err, ErrNoAddress) {
		t.Errorf("a name that is gone: %v", err)
	}
}

// However many wait for a name, one question is under way; who stops waiting does
// not end it.
func TestOneFlight(t *testing.T) {
	u := serve(t, map[string]string{"x.example. A": "x.example. 60 A 192.0.2.1"})
	gate := make(chan struct{})
	u.change(func() { u.gate = gate })
	r, _ := resolver(t, Config{Servers: []netip.AddrPort{u.addr}})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Resolve(gone, "x.example", Families{IPv4: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("who stops waiting gets %v", err)
	}
	var wg sync.WaitGroup
	var failed atomic.Int32
	for range 50 {
		wg.Go(func() {
			if _, err := r.Resolve(t.Context(), "x.example", Families{IPv4: true}); err != nil {
				failed.Add(1)
			}
		})
	}
	close(gate)
	wg.Wait()
	if n := u.count("x.example. A"); n != 1 || failed.Load() != 0 {
		t.Errorf("%d questions, %d failures", n, failed.Load())
	}
}

// What is asked at a time and what is kept is bounded.
func TestBounds(t *testing.T) {
	u := serve(t, map[string]string{})
	gate := make(chan struct{})
	u.change(func() { u.gate = gate })
	r, _ := resolver(t, Config{Servers: []netip.AddrPort{u.addr}})
	for i := range maxFlights {
		r.ask(key{fmt.Sprintf("n%d.example.", i), dns.TypeA})
	}
	if _, err := r.Resolve(t.Context(), "more.example", Families{IPv4: true}); !errors.Is(err, ErrBusy) {
		t.Errorf("one question more than allowed: %v", err)
	}
	close(gate)
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range maxEntries + 100 {
		r.remember(key{fmt.Sprintf("m%d.example.", i), dns.TypeA}, answer{addrs: []netip.Addr{u.addr.Addr()}, ttl: time.Minute}, nil)
	}
	if n := len(r.entries); n > maxEntries {
		t.Errorf("%d answers are kept", n)
	}
}

// samePort finds a port that is free for both protocols.
func samePort(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	var err error
	for range 100 {
		l, lerr := net.Listen("tcp", "127.0.0.1:0")
		if lerr != nil {
			t.Fatal(lerr)
		}
		pc, perr := net.ListenPacket("udp", l.Addr().String())
		if perr == nil {
			return pc, l
		}
		err = perr
		l.Close()
	}
	t.Fatal(err)
	return nil, nil
}

// One resolver that does not answer, or lies, is not the end.
func TestServers(t *testing.T) {
	dead, err := net.ListenPacket("udp", "127.0.0.1:0") // takes questions and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	records := map[string]string{"x.example. A": "x.example. 60 A 192.0.2.1"}
	liar, good := serve(t, records), serve(t, records)
	liar.change(func() { liar.forge = func(m *dns.Msg) { m.Question[0].Name = "y.example." } })
	r, _ := resolver(t, Config{Servers: []netip.AddrPort{dead.LocalAddr().(*net.UDPAddr).AddrPort(), liar.addr, good.addr}})
	if a, err := r.Resolve(t.Context(), "x.example", Families{IPv4: true}); err != nil || fmt.Sprint(a) != "[192.0.2.1]" {
		t.Errorf("%v, %v", a, err)
	}
	alone, _ := resolver(t, Config{Servers: []netip.AddrPort{liar.addr}})
	if a, err := alone.Resolve(t.Context(), "x.example", Families{IPv4: true}); err == nil {
		t.Errorf("a lie was believed: %v", a)
	}
	silent, _ := resolver(t, Config{Servers: []netip.AddrPort{dead.LocalAddr().(*net.UDPAddr).AddrPort()}, Timeout: 50 * time.Millisecond})
	if _, err := silent.Resolve(t.Context(), "x.example", Families{IPv4: true}); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silence: %v", err)
	}
}

// The list of resolvers is read again when its file changes, by renaming too.
func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	s := &servers{path: path}
	if _, err := s.list(); err == nil || !strings.Contains(err.Error(), "no DNS server is known: "+path) {
		t.Errorf("without a file: %v", err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ text, want string }{
		{"search x\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n", "[192.0.2.1:53 [2001:db8::1]:53]"},
		{"nameserver 192.0.2.2\n", "[192.0.2.2:53]"},
	} {
		write(tt.text)
		if got, err := s.list(); err != nil || fmt.Sprint(got) != tt.want {
			t.Errorf("%q: %v, %v", tt.text, got, err)
		}
	}
	write("search x\n")
	if _, err := s.list(); err == nil || !strings.Contains(err.Error(), "names no nameserver") {
		t.Errorf("without servers: %v", err)
	}
}

// FuzzRead: no reply breaks the reader, and what it returns can be dialed.
func FuzzRead(f *testing.F) {
	for _, text := range []string{"x.example. 60 A 192.0.2.1", "x.example. 60 CNAME x.example."} {
		m := new(dns.Msg).SetQuestion("x.example.", dns.TypeA)
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		a, err := read(m, key{"x.example.", dns.TypeA})
		if err != nil {
			return
		}
		if len(a.addrs) > maxAddrs || a.ttl < 0 {
			t.Fatalf("%+v", a)
		}
		for _, addr := range a.addrs {
			if !addr.Is4() || addr.IsUnspecified() {
				t.Fatalf("%+v", a)
			}
		}
	})
}
