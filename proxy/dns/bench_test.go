package dns

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func benchServer(b *testing.B) *Server {
	s, err := New(Config{
		Zone: Zone{IPv6: true}, Mesh: knownMesh(), Resolvers: func() []netip.AddrPort { return nil },
		Dial: func(context.Context, string, netip.AddrPort) (net.Conn, error) { return nil, net.ErrClosed },
	})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// BenchmarkAnswer is a captured query, from its bytes to those of the answer.
func BenchmarkAnswer(b *testing.B) {
	for _, name := range []string{"web.app.svc.cluster.local.", "api.example.com.app.svc.cluster.local.", "pg.db.svc.cluster.local."} {
		b.Run(name, func(b *testing.B) {
			s, buf := benchServer(b), make([]byte, maxQuery)
			q := question4(name, dns.TypeA)
			q.SetEdns0(1232, false)
			raw, err := q.Pack()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if reply, _ := s.begin(raw, UDP, buf); reply == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}

// BenchmarkResolve is the decision alone, for names that are and are not ours.
func BenchmarkResolve(b *testing.B) {
	v, z := testView(), &Zone{IPv6: true}
	for _, name := range []string{"web.app.svc.cluster.local", "www.example.org", "www.example.org.app.svc.cluster.local"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				z.Resolve(v, Client{Namespace: "app"}, name, dns.TypeA)
			}
		})
	}
}

// BenchmarkUDP is a round trip over a socket.
func BenchmarkUDP(b *testing.B) {
	s := benchServer(b)
	pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() { s.ServePacket(pc); close(done) }()
	c, err := net.Dial("udp4", pc.LocalAddr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close(); _ = s.Close(); <-done }()
	raw, _ := question4("web.app.svc.cluster.local.", dns.TypeA).Pack()
	buf := make([]byte, minUDP)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(raw); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
