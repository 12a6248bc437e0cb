package h2

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/http2"
)

// gather joins the data of each stream.
func gather(evs []Event) map[uint32][]byte {
	got := map[uint32][]byte{}
	for _, e := range evs {
		if e.Kind == Data {
			got[e.Stream.ID] = append(got[e.Stream.ID], e.Data...)
		}
	}
	return got
}

func TestPaddingIsDroppedAndCredited(t *testing.T) {
	for _, pad := range []int{0, 1, 7, 255} {
		for _, n := range []int{0, 1, 100, 20000} {
			p := newPeer(t, false, testConfig)
			s := p.connect(1)
			body := bytes.Repeat([]byte("x"), n)
			for range 8 {
				p.must(p.fr.WriteDataPadded(1, false, body, make([]byte, pad)))
			}
			// In one piece and byte by byte.
			wire := bytes.Clone(p.out.Bytes())
			p.out.Reset()
			var got []byte
			for _, b := range wire {
				evs, err := p.c.Receive(0, []byte{b}, nil)
				p.must(err)
				got = append(got, gather(evs)[1]...)
			}
			if want := bytes.Repeat(body, 8); !bytes.Equal(got, want) {
				t.Fatalf("pad %d: got %d bytes, want %d", pad, len(got), len(want))
			}
			// Only the body is held; the padding went back.
			if held := s.recv.held(); held != int64(8*n) {
				t.Errorf("pad %d, %d bytes: %d held", pad, n, held)
			}
			if held := p.c.recv.held(); held != 0 {
				t.Errorf("pad %d, %d bytes: %d held of the connection", pad, n, held)
			}
		}
	}
}

func TestDataIsHandedOnAsItArrives(t *testing.T) {
	p := newPeer(t, false, testConfig)
	p.connect(1)
	p.must(p.fr.WriteData(1, true, make([]byte, 1000)))
	wire := bytes.Clone(p.out.Bytes())
	evs, err := p.c.Receive(0, wire[:9+10], nil)
	p.must(err)
	if len(gather(evs)[1]) != 10 {
		t.Errorf("%v for a part of a frame", kinds(evs))
	}
	evs, err = p.c.Receive(0, wire[9+10:], nil)
	p.must(err)
	if len(gather(evs)[1]) != 990 || evs[len(evs)-1].Kind != End {
		t.Errorf("%v for the rest", kinds(evs))
	}
}

func TestDataAfterOurResetIsIgnored(t *testing.T) {
	p := newPeer(t, false, testConfig)
	s := p.connect(1)
	p.must(p.fr.WriteData(1, false, make([]byte, 100)))
	first := bytes.Clone(p.out.Bytes())
	p.out.Reset()
	_, err := p.c.Receive(0, first[:50], nil)
	p.must(err)
	p.c.Reset(s, http2.ErrCodeConnect) // half way through the frame
	evs, err := p.c.Receive(0, first[50:], nil)
	p.must(err)
	if len(evs) > 0 {
		t.Errorf("%v after the reset", kinds(evs))
	}
	p.must(p.fr.WriteData(1, true, make([]byte, 1000)))
	p.must(p.fr.WriteWindowUpdate(1, 5))
	p.must(p.fr.WriteRSTStream(1, no))
	if evs := p.send(); len(evs) > 0 || p.err != nil {
		t.Errorf("%v, %v", kinds(evs), p.err)
	}
	if held := p.c.recv.held(); held != 0 {
		t.Errorf("%d bytes of the connection's credit lost", held)
	}
	p.flush()
	wantLast(t, p, http2.FrameRSTStream, http2.ErrCodeConnect)
}

// TestBothSides runs a client and a server of ours against each other, with
// random chunks, and checks every byte.
func TestBothSides(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	client, server := NewClient(testConfig), NewServer(testConfig)
	const streams, each = 20, 3 << 20
	have := map[*Stream]int{}
	got := map[uint32]int{}
	ended := 0
	for range streams {
		s, err := client.Open("10.0.0.1:80", [][2]string{{"baggage", "k8s.namespace.name=default"}})
		if err != nil {
			t.Fatal(err)
		}
		have[s] = each
	}
	feed := func(to *Conn, wire []byte) {
		for len(wire) > 0 {
			n := min(len(wire), 1+r.IntN(40000))
			evs, err := to.Receive(0, wire[:n], nil)
			if err != nil {
				t.Fatal(err)
			}
			wire = wire[n:]
			for _, e := range evs {
				switch e.Kind {
				case Request:
					to.Accept(e.Stream, nil)
				case Response:
					to.Ready(e.Stream)
				case Data:
					got[e.Stream.ID] += len(e.Data)
					to.Consumed(e.Stream, len(e.Data))
				case End:
					ended++
				case Reset:
					t.Fatal("reset")
				}
			}
		}
	}
	for rounds := 0; ended < streams; rounds++ {
		if rounds > 10000 {
			t.Fatalf("stuck: %d of %d ended", ended, streams)
		}
		_, wire := pump(client, 256<<10, have, true)
		feed(server, wire)
		feed(client, server.AppendControl(nil))
	}
	for id, n := range got {
		if n != each {
			t.Errorf("stream %d: %d bytes", id, n)
		}
	}
	if len(got) != streams {
		t.Errorf("%d streams", len(got))
	}
}
