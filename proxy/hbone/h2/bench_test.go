package h2

import (
	"bytes"
	"testing"

	"golang.org/x/net/http2"
)

// BenchmarkReceive parses DATA frames and returns their credit.
func BenchmarkReceive(b *testing.B) {
	for name, size := range map[string]int{"16KiB": 16 << 10, "1B": 1} {
		b.Run(name, func(b *testing.B) {
			p := newPeer(b, false, testConfig)
			p.c.limits.small = newBucket(0, 1<<60)
			s := p.connect(1)
			for range 8 {
				p.must(p.fr.WriteData(1, false, make([]byte, size)))
			}
			wire := bytes.Clone(p.out.Bytes())
			var evs []Event
			out := make([]byte, 0, 4096)
			b.SetBytes(int64(8 * size))
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if evs, err = p.c.Receive(0, wire, evs[:0]); err != nil {
					b.Fatal(err)
				}
				for _, e := range evs {
					p.c.Consumed(s, len(e.Data))
				}
				out = p.c.AppendControl(out[:0])
			}
		})
	}
}

// BenchmarkTurn is one frame of one of 64 streams that all have something to send.
func BenchmarkTurn(b *testing.B) {
	p := newPeer(b, true, testConfig)
	p.wide(16 << 10)
	for range 64 {
		p.c.Ready(p.open())
	}
	p.flush()
	hdr := make([]byte, 9)
	b.ReportAllocs()
	for b.Loop() {
		s, n := p.c.Next(256 << 10)
		p.c.Sent(s, hdr, n, false, true)
		p.c.send += int64(n) // endless credit
		s.send += int64(n)
	}
}

// BenchmarkConnect opens, answers and closes a stream.
func BenchmarkConnect(b *testing.B) {
	client, server := NewClient(testConfig), NewServer(testConfig)
	var evs []Event
	exchange := func(from, to *Conn) {
		var err error
		if evs, err = to.Receive(0, from.AppendControl(nil), evs[:0]); err != nil {
			b.Fatal(err)
		}
	}
	header := [][2]string{
		{"baggage", "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=client"},
		{"forwarded", `for="10.0.0.1:34567"`},
	}
	exchange(client, server)
	exchange(server, client)
	b.ReportAllocs()
	for b.Loop() {
		s, err := client.Open("10.0.0.1:80", header)
		if err != nil {
			b.Fatal(err)
		}
		exchange(client, server)
		server.Accept(evs[len(evs)-1].Stream, nil)
		exchange(server, client)
		client.Reset(s, http2.ErrCodeCancel)
		exchange(client, server)
	}
}

func TestReceiveAndTurnAllocateNothing(t *testing.T) {
	p := newPeer(t, false, testConfig)
	s := p.connect(1)
	p.flush()
	p.must(p.fr.WriteData(1, false, make([]byte, 1000)))
	wire := bytes.Clone(p.out.Bytes())
	evs := make([]Event, 0, 8)
	hdr := make([]byte, 9)
	n := testing.AllocsPerRun(200, func() {
		evs, _ = p.c.Receive(0, wire, evs[:0])
		for _, e := range evs {
			p.c.Consumed(s, len(e.Data))
		}
		p.c.Ready(s)
		if x, _ := p.c.Next(10); x != nil {
			p.c.Sent(x, hdr, 10, false, false)
		}
	})
	if n > 0 {
		t.Errorf("%v allocations", n)
	}
}
