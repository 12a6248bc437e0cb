package dns

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func seeds(f *testing.F) (out [][]byte) {
	for _, name := range []string{"web.", "web.dev.", "web.app.svc.cluster.local.", "Api.Example.com.app.svc.cluster.local.", "a.wild.example.com.", `a\.b\000.example.com.`, "."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeAXFR} {
			m := question4(name, qtype)
			if qtype == dns.TypeAAAA {
				m.SetEdns0(1232, true)
			}
			raw, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			out = append(out, raw)
		}
	}
	return append(out, nil, out[0][:headerSize], append(bytes.Clone(out[0][:headerSize]), 0xc0, headerSize, 0, 1, 0, 1))
}

// FuzzQuery: whatever comes, there is no panic, and an answer is a message that
// answers it and fits.
func FuzzQuery(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s, false)
		f.Add(s, true)
	}
	s, err := New(Config{
		Zone: Zone{IPv6: true}, Mesh: knownMesh(), Resolvers: func() []netip.AddrPort { return nil },
		Dial: func(context.Context, string, netip.AddrPort) (net.Conn, error) { return nil, errors.New("no") },
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte, tcp bool) {
		if len(raw) > maxTCP {
			return
		}
		transport := UDP
		if tcp {
			transport = TCP
		}
		before := bytes.Clone(raw)
		reply, task := s.begin(raw, transport, nil)
		if !bytes.Equal(before, raw) {
			t.Fatal("the query was changed")
		}
		if task != nil {
			reply = s.finish(t.Context(), task)
		}
		if reply == nil {
			return
		}
		if reply[2]&0x80 == 0 || !bytes.Equal(reply[:2], raw[:2]) {
			t.Fatalf("%x is no answer to %x", reply, raw)
		}
		var m dns.Msg
		if err := m.Unpack(reply); err != nil {
			t.Fatalf("%x: %v", reply, err)
		}
		if q, _ := parse(raw, transport); len(reply) > q.size {
			t.Fatalf("%d bytes for a client that takes %d", len(reply), q.size)
		}
		if m.Rcode == dns.RcodeSuccess && !matches(raw, reply) {
			t.Fatalf("%x does not match %x", reply, raw)
		}
	})
}

// FuzzReply: a resolver's message is taken or left, and what is passed on fits.
func FuzzReply(f *testing.F) {
	all := seeds(f)
	for i, s := range all {
		r := bytes.Clone(s)
		if len(r) > 2 {
			r[2] |= 0x80
		}
		f.Add(s, r, uint16(512))
		f.Add(s, append(r, make([]byte, 600)...), uint16(512))
		f.Add(s, all[(i+1)%len(all)], uint16(0))
	}
	// A name that lies behind the question would be cut off.
	ahead := append(bytes.Clone(all[0][:headerSize]), 0xc0, headerSize+6, 0, 1, 0, 1)
	answer := append(bytes.Clone(ahead), make([]byte, 600)...)
	answer[2] |= 0x80
	f.Add(ahead, answer, uint16(512))
	answer = bytes.Clone(answer)
	ahead, _ = append(ahead, 3, 'w', 'e', 'b', 0), copy(answer[headerSize+6:], "\x03web\x00")
	f.Add(ahead, answer, uint16(512))
	f.Fuzz(func(t *testing.T, asked, reply []byte, size uint16) {
		if len(asked) < headerSize || !matches(asked, reply) {
			return
		}
		_, _ = addresses(reply, dns.TypeA)
		kept, now := cache{limit: 1 << 20}, time.Now()
		kept.put("k", reply, now)
		if older := kept.get("k", now.Add(time.Second)); older != nil {
			if len(older) != len(reply) || !matches(asked, older) {
				t.Fatalf("kept as %x", older)
			}
		}
		got := shorten(bytes.Clone(reply), max(int(size), minUDP))
		switch {
		case len(got) > max(int(size), minUDP):
			t.Fatalf("%d bytes", len(got))
		case len(got) == len(reply):
			if !bytes.Equal(got, reply) {
				t.Fatal("changed")
			}
		case !truncated(got) || !bytes.Equal(got[:2], reply[:2]):
			t.Fatalf("cut to %x", got)
		}
		if len(got) < len(reply) {
			if err := new(dns.Msg).Unpack(got); err != nil {
				t.Fatalf("cut to %x: %v", got, err)
			}
		}
	})
}
