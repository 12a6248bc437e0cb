package hbone_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/warren-mesh/warren/proxy/hbone"
)

// outcome is what a Start's done was told.
type outcome struct {
	s   *hbone.Stream
	err error
}

// start is a Start that was flushed.
func start(p *hbone.Pool, key hbone.Key) (told <-chan outcome, cancel func(error), ok bool) {
	c := make(chan outcome, 2) // a second call is seen, too
	cancel, then, ok := p.Start(key, request(), func(s *hbone.Stream, err error) { c <- outcome{s, err} })
	if then != nil {
		then.Flush()
	}
	return c, cancel, ok
}

// warm has a tunnel in the pool, without streams.
func warm(t *testing.T, p *hbone.Pool, key hbone.Key) {
	t.Helper()
	s, err := p.Open(context.Background(), key, request())
	if err != nil {
		t.Fatal(err)
	}
	s.Reset(nil)
	waitUntil(t, "the stream ends", func() bool { return p.Stats().Streams == 0 })
}

// Start uses a tunnel that is there, and neither makes one nor waits for a place.
func TestStart(t *testing.T) {
	r := newRig(t, "", func(r *rig) { r.answer = acceptAll })
	p := newCountingPool(t, r, hbone.Config{PoolStreams: 2})
	if _, _, ok := start(p.Pool, r.key()); ok || p.dials.Load() != 0 {
		t.Fatalf("%d dials: there was no tunnel", p.dials.Load())
	}
	warm(t, p.Pool, r.key())
	for range 2 {
		told, cancel, ok := start(p.Pool, r.key())
		if !ok {
			t.Fatal("there was a tunnel")
		}
		got := <-told
		if got.err != nil {
			t.Fatal(got.err)
		}
		cancel(errors.New("too late"))
		discard(got.s)
	}
	if _, _, ok := start(p.Pool, r.key()); ok {
		t.Error("there was no place")
	}
	if st := p.Stats(); st.Streams != 2 || st.Tunnels != 1 {
		t.Errorf("%+v", st)
	}
}

func TestStartRefused(t *testing.T) {
	var status atomic.Int64
	status.Store(200)
	r := newRig(t, "", func(r *rig) {
		r.answer = func(in *hbone.Incoming) {
			if n := status.Load(); n != 200 {
				in.Reject(int(n))
				return
			}
			acceptAll(in)
		}
	})
	p := newCountingPool(t, r, hbone.Config{})
	warm(t, p.Pool, r.key())
	status.Store(503)
	told, _, _ := start(p.Pool, r.key())
	var refused *hbone.StatusError
	if got := <-told; !errors.As(got.err, &refused) || refused.Code != 503 || hbone.Again(got.err) {
		t.Errorf("%v", got.err)
	}
	waitUntil(t, "the stream is forgotten", func() bool { return p.Stats().Streams == 0 })
}

// What nobody answers is given up: when the time is over, and when it is cancelled.
func TestStartGivesUp(t *testing.T) {
	answer := make(chan bool, 1)
	answer <- true
	r := newRig(t, "", func(r *rig) {
		r.answer = func(in *hbone.Incoming) {
			select {
			case <-answer:
				acceptAll(in)
			default:
			}
		}
	})
	p := newCountingPool(t, r, impatient)
	warm(t, p.Pool, r.key())
	told, _, ok := start(p.Pool, r.key())
	if !ok {
		t.Fatal("there was a tunnel")
	}
	if got := <-told; !errors.Is(got.err, hbone.ErrTimeout) {
		t.Errorf("no answer: %v", got.err)
	}
	cut := errors.New("cut")
	told, cancel, ok := start(p.Pool, r.key())
	if !ok {
		t.Fatal("there was a tunnel")
	}
	cancel(cut)
	cancel(errors.New("twice"))
	if got := <-told; !errors.Is(got.err, cut) {
		t.Errorf("cancelled: %v", got.err)
	}
	waitUntil(t, "the streams end", func() bool { return p.Stats().Streams == 0 })
	if err := p.Drain(context.Background()); err != nil { // waits for no opening
		t.Error(err)
	}
	if len(told) > 0 {
		t.Error("told twice")
	}
}

// A CONNECT that the peer did nothing with, or whose tunnel was dead, may be tried
// again; one that may have been heard may not.
func TestStartAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		refuse func(*framed, uint32) error
		again  bool
	}{
		"REFUSED_STREAM": {func(f *framed, id uint32) error { return f.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream) }, true},
		"GOAWAY":         {func(f *framed, _ uint32) error { return f.fr.WriteGoAway(1, http2.ErrCodeNo, nil) }, true},
		"dead":           {func(f *framed, _ uint32) error { return f.c.Close() }, true},
		"CANCEL":         {func(f *framed, id uint32) error { return f.fr.WriteRSTStream(id, http2.ErrCodeCancel) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "", nil)
			l := frameServer(t, r.pki, func(f *framed) {
				for n := 0; ; {
					h, ok := f.next().(*http2.MetaHeadersFrame)
					if !ok {
						continue
					}
					if n++; n == 1 {
						_ = f.headers(h.StreamID, false, ":status", "200")
					} else if tt.refuse(f, h.StreamID) != nil || name == "dead" {
						return
					}
				}
			})
			p := newCountingPool(t, r, hbone.Config{})
			key := hbone.Key{Dst: l}
			warm(t, p.Pool, key)
			told, _, ok := start(p.Pool, key)
			if !ok {
				t.Fatal("there was a tunnel")
			}
			if got := <-told; got.err == nil || hbone.Again(got.err) != tt.again {
				t.Errorf("%v: again %v", got.err, hbone.Again(got.err))
			}
		})
	}
}

// The end of the pool is an answer, too.
func TestStartEndsWithThePool(t *testing.T) {
	answer := make(chan bool, 1)
	answer <- true
	r := newRig(t, "", func(r *rig) {
		r.answer = func(in *hbone.Incoming) {
			select {
			case <-answer:
				acceptAll(in)
			default:
			}
		}
	})
	p := newCountingPool(t, r, hbone.Config{})
	warm(t, p.Pool, r.key())
	told, _, ok := start(p.Pool, r.key())
	if !ok {
		t.Fatal("there was a tunnel")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := p.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Drain: %v: it did not wait for the answer", err)
	}
	if got := <-told; !errors.Is(got.err, hbone.ErrClosed) {
		t.Errorf("%v", got.err)
	}
	if _, _, ok := start(p.Pool, r.key()); ok {
		t.Error("a closed pool opens streams")
	}
}

// Who waits for something on behalf of a request hears that nobody wants it any more.
func TestOnGone(t *testing.T) {
	in := make(chan *hbone.Incoming, 2)
	r := newRig(t, "", func(r *rig) { r.answer = func(i *hbone.Incoming) { in <- i } })
	p := newCountingPool(t, r, hbone.Config{})
	ctx, cancel := context.WithCancel(context.Background())
	opened := make(chan error)
	go func() {
		_, err := p.Open(ctx, r.key(), request())
		opened <- err
	}()
	i := <-in
	gone := make(chan bool, 2)
	i.OnGone(func() { gone <- true })
	if len(gone) > 0 {
		t.Error("called before")
	}
	cancel()
	<-gone
	i.OnGone(func() { gone <- true }) // late
	<-gone
	if err := <-opened; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
