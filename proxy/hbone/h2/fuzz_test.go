package h2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/http2"
)

// verdict is what a Conn made of some input, comparable across chunkings.
type verdict struct {
	log string
	err string
}

// run feeds input to a fresh Conn in chunks of at most max bytes.
func run(t *testing.T, client bool, input []byte, max int, r *rand.Rand, pressure bool) verdict {
	cfg := testConfig
	cfg.Budget = NewBudget(1 << 30)
	c := NewServer(cfg)
	if client {
		c = NewClient(cfg)
		for range 3 { // something to answer
			s, err := c.Open("10.0.0.1:80", nil)
			if err != nil {
				t.Fatal(err)
			}
			c.Ready(s)
		}
	}
	c.AppendControl(nil)
	var log bytes.Buffer
	var last *Stream // of the data being logged
	for len(input) > 0 {
		n := min(len(input), 1+r.IntN(max))
		evs, err := c.Receive(0, input[:n], nil)
		input = input[n:]
		for _, e := range evs {
			if e.Kind == Data {
				if last != e.Stream {
					fmt.Fprintf(&log, "\n%d: ", e.Stream.ID)
				}
				last = e.Stream
				log.Write(e.Data)
				c.Consumed(e.Stream, len(e.Data))
				continue
			}
			last = nil
			fmt.Fprintf(&log, "\n%v %v %d %v %v", e.Kind, e.Header, e.Status, e.Code, e.Ping)
			if e.Stream != nil {
				fmt.Fprint(&log, " ", e.Stream.ID)
			}
			if pressure && (e.Kind == Pong || e.Kind == Settings) { // memory runs short, or is enough again
				cfg.Budget.Resize(int64(e.Ping[0]&1) << 30)
			}
			if e.Kind == Request && e.Stream.ID%3 > 0 {
				c.Accept(e.Stream, nil)
				c.Ready(e.Stream)
			}
		}
		if s, n := c.Next(1 << 20); s != nil && n <= 0 {
			t.Fatalf("stream %d is to send %d bytes", s.ID, n)
		}
		held := cap(c.in.buf) + cap(c.in.block.buf) + cap(c.out.ctl)
		if held > 2*(maxControlOut+4*int(testConfig.MaxHeaderList)) || len(c.streams) > int(testConfig.MaxStreams) {
			t.Fatalf("holds %d bytes, %d streams", held, len(c.streams))
		}
		if err != nil {
			return verdict{log.String(), err.Error()}
		}
	}
	return verdict{log: log.String()}
}

func FuzzReceive(f *testing.F) {
	for _, v := range violations {
		p := rawPeer(f, v.client, testConfig)
		p.must(p.fr.WriteSettings())
		// What the violation needs of the Conn's state (connect, open) is not
		// there: only the bytes count.
		func() {
			defer func() { _ = recover() }()
			if !needsState(v) {
				v.do(p)
			}
		}()
		f.Add(v.client, p.out.Bytes(), uint64(1))
	}
	for _, client := range []bool{true, false} {
		p := rawPeer(f, client, testConfig)
		p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 70000}))
		p.must(p.fr.WriteSettingsAck())
		for _, id := range []uint32{1, 3, 5} {
			if client {
				p.headers(id, false, ":status", "200", "baggage", "x")
			} else {
				p.headers(id, false, ":method", "CONNECT", ":authority", "10.0.0.1:80", "baggage", "x")
			}
			p.must(p.fr.WriteDataPadded(id, false, []byte("some data"), make([]byte, 5)))
			p.must(p.fr.WriteWindowUpdate(id, 1000))
		}
		p.must(p.fr.WritePing(false, [8]byte{1, 2, 3}))
		p.must(p.fr.WriteData(1, true, []byte("more")))
		p.must(p.fr.WriteRSTStream(3, http2.ErrCodeCancel))
		p.must(p.fr.WriteGoAway(5, no, nil))
		f.Add(client, p.out.Bytes(), uint64(2))
	}
	for _, client := range []bool{true, false} { // more to acknowledge than waits
		p := rawPeer(f, client, testConfig)
		p.must(p.fr.WriteSettings())
		for range maxPendingAcks {
			p.must(p.fr.WriteSettings())
		}
		f.Add(client, p.out.Bytes(), uint64(3))
		p = rawPeer(f, client, testConfig)
		p.must(p.fr.WriteSettings())
		for range maxPendingAcks {
			p.must(p.fr.WritePing(false, [8]byte{1}))
		}
		p.must(p.fr.WritePing(true, [8]byte{2}))
		f.Add(client, p.out.Bytes(), uint64(3))
	}
	f.Fuzz(func(t *testing.T, client bool, input []byte, seed uint64) {
		if !client {
			input = append([]byte(http2.ClientPreface), input...)
		}
		r := rand.New(rand.NewPCG(seed, 0))
		whole := run(t, client, input, 1<<30, rand.New(zero{}), false)
		for _, max := range []int{1, 7, 64, 4096} {
			if got := run(t, client, input, max, r, false); got != whole {
				t.Fatalf("in chunks of up to %d: %q\nas a whole: %q", max, got, whole)
			}
			// What we send between two chunks is another thing to acknowledge: no verdict is the right one.
			run(t, client, input, max, r, true)
		}
	})
}

// zero is a source that makes every chunk as large as it may be.
type zero struct{}

func (zero) Uint64() uint64 { return 1<<64 - 1 }

// needsState says whether a violation talks to the Conn while it is built.
func needsState(v violation) bool {
	switch v.name {
	case "settings ack too many", "goaway raises its last stream":
		return false
	}
	return v.reset != 0 || v.conn == flow || v.name == "headers on a lower stream" ||
		v.name == "padding longer than data" || v.name == "padded data without pad length"
}
