package hbone_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone"
)

// overRig is a server, and a way to it that can be held up.
type overRig struct {
	*pki
	t    *testing.T
	cfg  hbone.Config
	way  net.Listener
	mu   sync.Mutex
	held chan struct{} // what the client sends waits for it; nil: it does not
}

func newOverRig(t *testing.T, h hbone.HandlerFunc) *overRig {
	t.Helper()
	r := &overRig{pki: newPKI(t), t: t, cfg: hbone.Config{Records: records}}
	_, r.cfg.Ready = newRelay(t)
	server := listen(t)
	r.way = listen(t)
	tc, cfg := r.server(t, "server"), r.cfg // the client's may change
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); server.Close(); r.way.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _ = hbone.Serve(ctx, ctx, c, tc, cfg, h) })
		}
	})
	wg.Go(func() {
		for {
			c, err := r.way.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", server.Addr().String())
			if err != nil {
				c.Close()
				return
			}
			wg.Go(func() { io.Copy(c, s); c.(*net.TCPConn).CloseWrite() })
			wg.Go(func() { r.carry(s.(*net.TCPConn), c) })
		}
	})
	return r
}

// carry takes what the client sends to the server, unless that is held up.
func (r *overRig) carry(to *net.TCPConn, from net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		r.mu.Lock()
		held := r.held
		r.mu.Unlock()
		if held != nil {
			<-held
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			to.CloseWrite()
			io.Copy(io.Discard, from)
			return
		}
	}
}

// open opens a stream; ended is closed when its tunnel has.
func (r *overRig) open(ctx context.Context) (s *hbone.Stream, ended chan struct{}, err error) {
	r.t.Helper()
	c, err := net.Dial("tcp", r.way.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	ended = make(chan struct{})
	s, err = hbone.Over(ctx, c, r.client(r.t, "client"), r.cfg, hbone.Request{Authority: "10.0.0.1:80"}, func() { close(ended) })
	return s, ended, err
}

// A tunnel over another one ends after its stream, but not before the peer has got
// all of it, however slow the way is.
func TestOver(t *testing.T) {
	const size = 100_000
	var got atomic.Int64
	over := make(chan error, 1)
	r := newOverRig(t, func(in *hbone.Incoming) {
		s := in.Accept(nil)
		attach(s, func([]byte) (int, error) { return 0, io.EOF }, // its own end comes first
			func(bufs [][]byte) (n int, _ error) {
				for _, b := range bufs {
					n += len(b)
				}
				got.Add(int64(n))
				return n, nil
			}, func(err error) { over <- err })
		isReady(s)
	})
	s, ended, err := r.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	r.mu.Lock()
	r.held = release
	r.mu.Unlock()
	peerEnded := make(chan error, 1)
	sent := 0
	attach(s, func(dst []byte) (int, error) {
		n := min(len(dst), size-sent)
		if sent += n; sent == size {
			return n, io.EOF
		}
		return n, nil
	}, func([][]byte) (int, error) { return 0, nil }, func(err error) { peerEnded <- err })
	if err := <-peerEnded; err != io.EOF {
		t.Fatalf("the peer's end: %v", err)
	}
	isReady(s)
	select {
	case <-ended:
		t.Error("the tunnel ended while the way was held up")
	case <-time.After(1500 * time.Millisecond): // longer than any tunnel lingers
	}
	close(release)
	if err := <-over; err != io.EOF || got.Load() != size {
		t.Errorf("the peer got %d bytes, then %v", got.Load(), err)
	}
	<-ended
}

// Whatever goes wrong before the peer accepts, the tunnel has ended when the
// caller learns of it.
func TestOverFails(t *testing.T) {
	for _, tt := range []struct {
		name   string
		handle hbone.HandlerFunc
		with   func(*overRig, context.CancelFunc)
		is     func(error) bool
	}{
		{"refused", func(in *hbone.Incoming) { in.Reject(503) }, nil, func(err error) bool {
			e, ok := errors.AsType[*hbone.StatusError](err)
			return ok && e.Code == 503
		}},
		{"not answered", func(in *hbone.Incoming) {}, func(r *overRig, _ context.CancelFunc) { r.cfg.ResponseTimeout = 50 * time.Millisecond },
			func(err error) bool { return errors.Is(err, hbone.ErrTimeout) }},
		{"given up", func(in *hbone.Incoming) {}, func(_ *overRig, give context.CancelFunc) { time.AfterFunc(50*time.Millisecond, give) },
			func(err error) bool { return errors.Is(err, context.Canceled) }},
		{"not trusted", func(in *hbone.Incoming) {}, func(r *overRig, _ context.CancelFunc) { r.pki = newPKI(r.t) },
			func(err error) bool { _, ok := errors.AsType[*hbone.TLSError](err); return ok }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newOverRig(t, tt.handle)
			ctx, give := context.WithCancel(t.Context())
			defer give()
			if tt.with != nil {
				tt.with(r, give)
			}
			s, ended, err := r.open(ctx)
			if s != nil || !tt.is(err) {
				t.Errorf("%v, %v", s, err)
			}
			select {
			case <-ended:
			default:
				t.Error("the tunnel has not ended")
			}
		})
	}
}
