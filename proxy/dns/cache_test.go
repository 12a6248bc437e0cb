package dns

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func records4(t *testing.T, rcode int, ttl uint32, extra ...dns.RR) []byte {
	t.Helper()
	m := new(dns.Msg).SetRcode(question4("db.example.com.", dns.TypeA), rcode)
	if rcode == dns.RcodeSuccess && ttl > 0 {
		for i := range 3 {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: "db.example.com.", Rrtype: dns.TypeA, Class: 1, Ttl: ttl + uint32(i)}, A: net.IPv4(192, 0, 2, 1).To4()})
		}
	}
	m.Ns = extra
	m.Compress = true
	m.SetEdns0(1232, false)
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func soa(ttl, minimum uint32) dns.RR {
	return &dns.SOA{Hdr: dns.RR_Header{Name: "example.com.", Rrtype: dns.TypeSOA, Class: 1, Ttl: ttl}, Ns: "a.", Mbox: "b.", Minttl: minimum}
}

func TestLifetime(t *testing.T) {
	cut := records4(t, dns.RcodeSuccess, 5)
	cut[2] |= 0x02
	long := append(records4(t, dns.RcodeSuccess, 5), make([]byte, maxKeptReply)...)
	for name, tt := range map[string]struct {
		reply []byte
		want  time.Duration
	}{
		"as the records say":   {records4(t, dns.RcodeSuccess, 5), 5 * time.Second},
		"no longer than we do": {records4(t, dns.RcodeSuccess, 3600), maxKept},
		"not at all":           {records4(t, dns.RcodeSuccess, 0, soa(0, 60)), 0},
		"no such name":         {records4(t, dns.RcodeNameError, 0, soa(60, 1)), time.Second},
		"its SOA is old":       {records4(t, dns.RcodeNameError, 0, soa(1, 60)), time.Second},
		"no longer, too":       {records4(t, dns.RcodeNameError, 0, soa(60, 60)), maxKeptNone},
		"no such type":         {records4(t, dns.RcodeSuccess, 0, soa(60, 60)), maxKeptNone},
		"no SOA":               {records4(t, dns.RcodeNameError, 0), 0},
		"a failure":            {records4(t, dns.RcodeServerFailure, 0, soa(60, 60)), 0},
		"a TTL that is none":   {records4(t, dns.RcodeSuccess, 1<<31), 0},
		"truncated":            {cut, 0},
		"very long":            {long, 0},
		"cut off":              {records4(t, dns.RcodeSuccess, 5)[:60], 0},
	} {
		if got := lifetime(tt.reply); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestCacheAges(t *testing.T) {
	c, now := cache{limit: 1 << 20}, time.Now()
	reply := records4(t, dns.RcodeSuccess, 5)
	c.put("k", reply, now)
	reply[0]++ // what is kept is its own
	got := c.get("k", now.Add(3*time.Second))
	var m dns.Msg
	if err := m.Unpack(got); err != nil {
		t.Fatal(err)
	}
	for i, rr := range m.Answer {
		if rr.Header().Ttl != uint32(2+i) {
			t.Errorf("record %d: TTL %d, want %d", i, rr.Header().Ttl, 2+i)
		}
	}
	if opt := m.IsEdns0(); len(m.Answer) != 3 || opt == nil || opt.UDPSize() != 1232 || opt.Hdr.Ttl != 0 || got[0] == reply[0] {
		t.Errorf("%v", &m)
	}
	got[0]++
	if again := c.get("k", now); bytes.Equal(again[:1], got[:1]) {
		t.Error("what is given out is kept")
	}
	if c.get("k", now.Add(5*time.Second)) != nil || c.bytes != 0 || len(c.m) != 0 {
		t.Errorf("after its time: %d bytes, %d answers", c.bytes, len(c.m))
	}
}

// However many names a pod asks for, no more than the bound is kept.
func TestCacheIsBounded(t *testing.T) {
	reply := records4(t, dns.RcodeSuccess, 5)
	c, now := cache{limit: 10 * size("name-000000", reply)}, time.Now()
	for i := range 1000 {
		c.put(fmt.Sprintf("name-%06d", i), reply, now)
		if c.bytes > c.limit || len(c.m) > 10 {
			t.Fatalf("%d bytes, %d answers", c.bytes, len(c.m))
		}
	}
	if len(c.m) != 10 || c.get("name-000999", now) == nil {
		t.Errorf("%d answers, the last one missing", len(c.m))
	}
	if c.put(string(make([]byte, c.limit)), reply, now); len(c.m) != 10 {
		t.Error("one that is larger than all made room for nothing")
	}
	if c.put("", reply, now); len(c.m) != 10 {
		t.Error("one without a key is kept")
	}
}

// A burst costs the resolver one question, and every answer is to its own.
func TestAsksOnce(t *testing.T) {
	u := startUpstream(t, replyWith(func(m *dns.Msg, _ string) {
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: 1, Ttl: 300}, A: net.IPv4(192, 0, 2, 1).To4()}}
	}))
	s := serve(t, nil, u)
	for range 5 {
		for _, network := range []string{"udp", "tcp"} {
			q := question4("db.example.org.", dns.TypeA)
			q.Id = dns.Id()
			if m := s.ask(t, network, q); m.Id != q.Id || len(m.Answer) != 1 {
				t.Fatalf("%v", m)
			}
		}
	}
	if n := u.udp.Load() + u.tcp.Load(); n != 1 {
		t.Errorf("the resolver was asked %d times", n)
	}
	if s.metrics.count(Cached) != 9 || s.metrics.count(Forwarded) != 1 {
		t.Errorf("outcomes %v", s.metrics.outcomes)
	}
	// Another spelling, other flags, options: another question.
	other := question4("DB.example.org.", dns.TypeA)
	if m := s.ask(t, "udp", other); m.Answer[0].Header().Name != "DB.example.org." {
		t.Errorf("asked in capitals: %v", m.Answer)
	}
	cookie := question4("db.example.org.", dns.TypeA).SetEdns0(1232, false)
	cookie.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}}
	before := u.udp.Load()
	s.ask(t, "udp", cookie)
	s.ask(t, "udp", cookie)
	if n := u.udp.Load() - before; n != 2 {
		t.Errorf("with a cookie the resolver was asked %d times", n)
	}
}

// What one resolver said is not another's answer.
func TestCacheKnowsWhomThePodAsked(t *testing.T) {
	q, err := parse(mustPack(t, question4("db.example.org.", dns.TypeA)), UDP)
	if err != nil {
		t.Fatal(err)
	}
	a, b := q.key(netip.MustParseAddrPort("192.0.2.1:53")), q.key(netip.MustParseAddrPort("192.0.2.2:53"))
	if a == b || a == "" {
		t.Errorf("keys %q and %q", a, b)
	}
}

func mustPack(t *testing.T, m *dns.Msg) []byte {
	t.Helper()
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
