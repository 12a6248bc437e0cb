package hbone_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/warren-mesh/warren/proxy/hbone"
)

// discard attaches an end that takes everything and has nothing to say until
// stop is called: then it half-closes.
func discard(s *hbone.Stream) (stop func()) {
	var ended atomic.Bool
	attach(s, func([]byte) (int, error) {
		if ended.Load() {
			return 0, io.EOF
		}
		return 0, nil
	}, takeAll, func(error) {})
	return func() { ended.Store(true); isReady(s) }
}

// acceptAll answers 200 and ends its direction when the client has.
func acceptAll(in *hbone.Incoming) {
	s := in.Accept(nil)
	attach(s, func([]byte) (int, error) { return 0, io.EOF },
		func(bufs [][]byte) (int, error) { return 0, nil }, func(error) { go isReady(s) })
}

// waitUntil waits for a condition that another goroutine brings about.
func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// countingPool dials the rig and counts.
type countingPool struct {
	*hbone.Pool
	dials atomic.Int64
}

func newCountingPool(t *testing.T, r *rig, cfg hbone.Config) *countingPool {
	p := &countingPool{}
	cfg.Records = records
	client := r.pki.client(t, "client")
	p.Pool = hbone.NewPool(cfg, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
		p.dials.Add(1)
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", k.Dst.String())
		return c, client, err
	})
	t.Cleanup(func() { p.Close() })
	return p
}

func request() hbone.Request { return hbone.Request{Authority: "10.0.0.1:80"} }

func TestPoolSpreadsStreams(t *testing.T) {
	r := newRig(t, "", func(r *rig) { r.answer = acceptAll })
	p := newCountingPool(t, r, hbone.Config{PoolStreams: 10})
	var stops []func()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 35 {
		wg.Go(func() {
			s, err := p.Open(context.Background(), r.key(), request())
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			stops = append(stops, discard(s))
		})
	}
	wg.Wait()
	if st := p.Stats(); st.Tunnels != 4 || st.Streams != 35 || p.dials.Load() != 4 {
		t.Errorf("%+v, %d dials", st, p.dials.Load())
	}
	// Places come back when streams end.
	for _, stop := range stops {
		stop()
	}
	waitUntil(t, "streams end", func() bool { return p.Stats().Streams == 0 })
	for range 40 {
		s, err := p.Open(context.Background(), r.key(), request())
		if err != nil {
			t.Fatal(err)
		}
		discard(s)
	}
	if st := p.Stats(); st.Tunnels != 4 || p.dials.Load() != 4 {
		t.Errorf("%+v, %d dials: places were not returned", st, p.dials.Load())
	}
}

func TestPoolKeepsToThePeersLimit(t *testing.T) {
	r := newRig(t, "", func(r *rig) { r.answer = acceptAll; r.cfg.MaxStreams = 3 })
	p := newCountingPool(t, r, hbone.Config{})
	for range 9 {
		s, err := p.Open(context.Background(), r.key(), request())
		if err != nil {
			t.Fatal(err)
		}
		discard(s)
	}
	if st := p.Stats(); st.Tunnels != 3 {
		t.Errorf("%+v, want 3 tunnels of 3 streams", st)
	}
}

// TestPoolDialsOnce: one dial a key, and its failure goes to those who wait,
// once; whoever comes later tries anew. Nobody waits for ever.
func TestPoolDialsOnce(t *testing.T) {
	var dials atomic.Int64
	gate := make(chan struct{})
	boom := errors.New("no route")
	p := hbone.NewPool(hbone.Config{Records: records}, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
		dials.Add(1)
		<-gate
		return nil, nil, boom
	})
	defer p.Close()
	key := hbone.Key{Dst: netip.MustParseAddrPort("10.0.0.1:15008")}
	errs := make(chan error)
	for range 20 {
		go func() {
			_, err := p.Open(context.Background(), key, request())
			errs <- err
		}()
	}
	waitUntil(t, "the dial", func() bool { return dials.Load() == 1 })
	if st := p.Stats(); st.Keys != 1 {
		t.Errorf("%+v", st)
	}
	close(gate)
	for range 20 {
		var ce *hbone.ConnectError
		if err := <-errs; !errors.Is(err, boom) || !errors.As(err, &ce) || ce.Dst != key.Dst {
			t.Errorf("got %v", err)
		}
	}
	after := dials.Load() // a caller that came late may have dialed itself
	if _, err := p.Open(context.Background(), key, request()); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	if dials.Load() != after+1 {
		t.Errorf("%d dials, then %d: a failure is not to be cached", after, dials.Load())
	}
	if st := p.Stats(); st != (hbone.Stats{}) {
		t.Errorf("%+v left behind", st)
	}
}

func TestPoolGivesUpADialNobodyWaitsFor(t *testing.T) {
	given := make(chan error, 1)
	p := hbone.NewPool(hbone.Config{Records: records}, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
		<-ctx.Done()
		given <- context.Cause(ctx)
		return nil, nil, ctx.Err()
	})
	defer p.Close()
	why := errors.New("pod is gone")
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(10*time.Millisecond, func() { cancel(why) })
	if _, err := p.Open(ctx, hbone.Key{}, request()); !errors.Is(err, why) {
		t.Errorf("Open: %v", err)
	}
	if err := <-given; !errors.Is(err, why) {
		t.Errorf("dial: %v", err)
	}
	waitUntil(t, "the key is forgotten", func() bool { return p.Stats().Keys == 0 })
}

func TestPoolStatus(t *testing.T) {
	status := 0
	r := newRig(t, "", func(r *rig) { r.answer = func(in *hbone.Incoming) { in.Reject(status) } })
	p := newCountingPool(t, r, hbone.Config{})
	for _, status = range []int{401, 503, 400} {
		_, err := p.Open(context.Background(), r.key(), request())
		var se *hbone.StatusError
		if !errors.As(err, &se) || se.Code != status {
			t.Errorf("%d arrives as %v", status, err)
		}
	}
	waitUntil(t, "the refused streams are forgotten", func() bool { return p.Stats().Streams == 0 })
	if n := p.dials.Load(); n != 1 {
		t.Errorf("%d dials", n)
	}
	if text := (&hbone.StatusError{Code: 401}).Error(); text != "http status: 401 Unauthorized" {
		t.Errorf("text %q", text)
	}
}

func TestPoolTLSFailures(t *testing.T) {
	r := newRig(t, "", nil)
	foreign := newPKI(t)
	for name, client := range map[string]*tls.Config{
		"we do not trust the peer": foreign.client(t, "x"),
		"the peer does not trust us": func() *tls.Config {
			c := r.pki.client(t, "x")
			c.Certificates = foreign.client(t, "x").Certificates
			return c
		}(),
	} {
		p := hbone.NewPool(hbone.Config{Records: records}, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
			c, err := net.Dial("tcp", k.Dst.String())
			return c, client, err
		})
		_, err := p.Open(context.Background(), r.key(), request())
		var te *hbone.TLSError
		if !errors.As(err, &te) {
			t.Errorf("%s: %v", name, err)
		}
		waitUntil(t, "the key is forgotten", func() bool { return p.Stats().Keys == 0 })
		p.Close()
	}
}

func TestPoolTimeouts(t *testing.T) {
	r := newRig(t, "", func(r *rig) { r.answer = func(*hbone.Incoming) {} })
	p := newCountingPool(t, r, impatient)
	if _, err := p.Open(context.Background(), r.key(), request()); !errors.Is(err, hbone.ErrTimeout) {
		t.Errorf("no answer: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := p.Open(ctx, r.key(), request()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("context: %v", err)
	}
	waitUntil(t, "streams end", func() bool { return p.Stats().Streams == 0 })

	silent := listen(t)
	key := hbone.Key{Dst: silent.Addr().(*net.TCPAddr).AddrPort()}
	var te *hbone.TLSError
	if _, err := p.Open(context.Background(), key, request()); !errors.Is(err, hbone.ErrTimeout) || !errors.As(err, &te) {
		t.Errorf("no handshake: %v", err)
	}
}

func TestPoolReleasesIdleTunnels(t *testing.T) {
	r := newRig(t, "", func(r *rig) { r.answer = acceptAll })
	p := newCountingPool(t, r, hbone.Config{IdleRelease: 50 * time.Millisecond})
	s, err := p.Open(context.Background(), r.key(), request())
	if err != nil {
		t.Fatal(err)
	}
	stop := discard(s)
	time.Sleep(100 * time.Millisecond) // longer than the idle time, but not idle
	if st := p.Stats(); st.Tunnels != 1 {
		t.Fatalf("%+v: a tunnel in use was released", st)
	}
	stop()
	waitUntil(t, "the tunnel is released", func() bool { return p.Stats() == hbone.Stats{} })
	waitUntil(t, "Serve returns", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.served) == 1 })
	if err := r.served[0]; err != nil {
		t.Errorf("the server saw %v", err)
	}
}

// TestPoolRetiresTunnels: when the time of a tunnel is over its streams go on, and
// new ones get a new tunnel.
func TestPoolRetiresTunnels(t *testing.T) {
	r := newRig(t, "", func(r *rig) { r.answer = acceptAll })
	var asked atomic.Int64
	p := newCountingPool(t, r, hbone.Config{Until: func(k hbone.Key, cs tls.ConnectionState) time.Time {
		if k != r.key() || len(cs.PeerCertificates) != 1 {
			t.Error("asked about another tunnel")
		}
		if asked.Add(1) > 1 {
			return time.Time{}
		}
		return time.Now().Add(100 * time.Millisecond)
	}})
	s, err := p.Open(context.Background(), r.key(), request())
	if err != nil {
		t.Fatal(err)
	}
	stop := discard(s)
	var stops []func()
	waitUntil(t, "a second tunnel", func() bool {
		s, err := p.Open(context.Background(), r.key(), request())
		if err != nil {
			t.Fatal(err)
		}
		stops = append(stops, discard(s))
		return p.Stats().Tunnels == 2
	})
	for _, stop := range stops[:len(stops)-1] {
		stop()
	}
	stop()
	waitUntil(t, "the first tunnel ends", func() bool { return p.Stats() == hbone.Stats{Keys: 1, Tunnels: 1, Streams: 1} })
}

// TestPoolRetries: a stream that the peer did nothing with goes to a fresh
// tunnel, as does one whose tunnel had been lying there dead; once.
func TestPoolRetries(t *testing.T) {
	t.Run("dead while idle", func(t *testing.T) {
		r := newRig(t, "", func(r *rig) { r.answer = acceptAll })
		p := newCountingPool(t, r, hbone.Config{})
		for i := range 5 {
			s, err := p.Open(context.Background(), r.key(), request())
			if err != nil {
				t.Fatalf("after %d restarts of the peer: %v", i, err)
			}
			discard(s)()
			waitUntil(t, "the stream ends", func() bool { return p.Stats().Streams == 0 })
			r.killTunnels()
		}
	})
	for name, refuse := range map[string]func(*framed, uint32) error{
		"REFUSED_STREAM": func(f *framed, id uint32) error { return f.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream) },
		"GOAWAY":         func(f *framed, id uint32) error { return f.fr.WriteGoAway(0, http2.ErrCodeNo, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "", nil)
			var tunnels atomic.Int64
			l := frameServer(t, r.pki, func(f *framed) {
				n := tunnels.Add(1)
				for {
					h, ok := f.next().(*http2.MetaHeadersFrame)
					if !ok {
						continue
					}
					if n == 1 {
						_ = refuse(f, h.StreamID)
					} else {
						_ = f.headers(h.StreamID, false, ":status", "200")
					}
				}
			})
			p := newCountingPool(t, r, hbone.Config{})
			key := hbone.Key{Dst: l}
			s, err := p.Open(context.Background(), key, request())
			if err != nil || tunnels.Load() != 2 {
				t.Fatalf("%v after %d tunnels", err, tunnels.Load())
			}
			discard(s)
		})
	}
	t.Run("few streams at a time", func(t *testing.T) {
		// The peer's limit comes when the first streams are on their way, as Envoy's does.
		const limit, opens = 5, 60
		r := newRig(t, "", nil)
		l := frameServer(t, r.pki, func(f *framed) {
			open := 0
			for {
				h, ok := f.next().(*http2.MetaHeadersFrame)
				switch {
				case !ok:
				case open == limit:
					_ = f.fr.WriteRSTStream(h.StreamID, http2.ErrCodeRefusedStream)
				default:
					open++
					_ = f.headers(h.StreamID, false, ":status", "200")
				}
			}
		}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: limit})
		p := newCountingPool(t, r, hbone.Config{})
		var wg sync.WaitGroup
		for range opens {
			wg.Go(func() {
				s, err := p.Open(context.Background(), hbone.Key{Dst: l}, request())
				if err != nil {
					t.Error(err)
					return
				}
				t.Cleanup(discard(s))
			})
		}
		wg.Wait()
	})
	t.Run("not for ever", func(t *testing.T) {
		r := newRig(t, "", nil)
		var tunnels atomic.Int64
		l := frameServer(t, r.pki, func(f *framed) {
			tunnels.Add(1)
			for {
				if h, ok := f.next().(*http2.MetaHeadersFrame); ok {
					_ = f.fr.WriteRSTStream(h.StreamID, http2.ErrCodeRefusedStream)
				}
			}
		})
		p := newCountingPool(t, r, hbone.Config{})
		var reset *hbone.ResetError
		if _, err := p.Open(context.Background(), hbone.Key{Dst: l}, request()); !errors.As(err, &reset) || tunnels.Load() != 2 {
			t.Errorf("%v after %d tunnels", err, tunnels.Load())
		}
	})
	t.Run("a fresh tunnel that dies is the answer", func(t *testing.T) {
		r := newRig(t, "", nil)
		var requests atomic.Int64
		l := frameServer(t, r.pki, func(f *framed) {
			for {
				if _, ok := f.next().(*http2.MetaHeadersFrame); ok {
					requests.Add(1) // and who knows what it did with it
					f.c.Close()
					return
				}
			}
		})
		p := newCountingPool(t, r, hbone.Config{})
		var lost *hbone.TunnelError
		if _, err := p.Open(context.Background(), hbone.Key{Dst: l}, request()); !errors.As(err, &lost) || requests.Load() != 1 {
			t.Errorf("%v after %d requests", err, requests.Load())
		}
	})
	t.Run("a peer that ends every tunnel", func(t *testing.T) {
		r := newRig(t, "", nil)
		l := frameServer(t, r.pki, func(f *framed) { f.c.Close() })
		p := newCountingPool(t, r, hbone.Config{})
		if _, err := p.Open(context.Background(), hbone.Key{Dst: l}, request()); err == nil || p.dials.Load() > 3 {
			t.Errorf("%v after %d tunnels", err, p.dials.Load())
		}
	})
}

func TestPoolDrain(t *testing.T) {
	r := newRig(t, "", func(r *rig) { r.answer = acceptAll })
	p := newCountingPool(t, r, hbone.Config{})
	s, err := p.Open(context.Background(), r.key(), request())
	if err != nil {
		t.Fatal(err)
	}
	stop := discard(s)
	drained := make(chan error, 1)
	go func() { drained <- p.Drain(context.Background()) }()
	waitUntil(t, "new streams are refused", func() bool {
		s, err := p.Open(context.Background(), r.key(), request())
		if err == nil {
			s.Reset(nil)
		}
		return errors.Is(err, hbone.ErrClosed)
	})
	select {
	case err := <-drained:
		t.Fatalf("drained with a stream open: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	stop()
	if err := <-drained; err != nil {
		t.Errorf("Drain: %v", err)
	}
	if st := p.Stats(); st != (hbone.Stats{}) {
		t.Errorf("%+v left", st)
	}
}

func TestPoolDrainDeadlineCuts(t *testing.T) {
	r := newRig(t, "", func(r *rig) { r.answer = acceptAll })
	p := newCountingPool(t, r, hbone.Config{})
	s, err := p.Open(context.Background(), r.key(), request())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	attach(s, func([]byte) (int, error) { return 0, nil },
		func(bufs [][]byte) (int, error) { return 0, nil },
		func(err error) { ended <- err })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := p.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Drain: %v", err)
	}
	if err := <-ended; !errors.Is(err, hbone.ErrClosed) {
		t.Errorf("the stream ended with %v", err)
	}
}

// TestServerDrain: the peer is warned, streams go on, Serve returns with the last.
func TestServerDrain(t *testing.T) {
	r := newRig(t, serveApp(t, echo), nil)
	c := r.dial()
	mustWrite(t, c, []byte("hello"))
	mustRead(t, c, "hello")
	r.drain()
	// The old tunnel goes on, and takes no more; new ones are the listener's matter.
	waitUntil(t, "GOAWAY arrives", func() bool { return r.pool.Stats().Tunnels == 1 })
	mustWrite(t, c, []byte("still there"))
	mustRead(t, c, "still there")
	_ = c.CloseWrite()
	mustEOF(t, c)
	waitUntil(t, "Serve returns", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.served) == 1 })
	if err := r.served[0]; err != nil {
		t.Errorf("Serve: %v", err)
	}
	waitUntil(t, "the pool notices", func() bool { return r.pool.Stats().Tunnels == 0 })
}

// TestBulkHasATunnelOfItsOwn: what is opened beside lasting bulk, whoever sends it,
// does not queue behind it, and bulk does not take tunnel after tunnel.
func TestBulkHasATunnelOfItsOwn(t *testing.T) {
	t.Run("sent", func(t *testing.T) {
		bulkHasATunnelOfItsOwn(t, func(s *hbone.Stream) { discard(s) }, endless)
	})
	t.Run("received", func(t *testing.T) {
		bulkHasATunnelOfItsOwn(t, func(s *hbone.Stream) {
			// The client's first byte asks for it.
			attach(s, func(dst []byte) (int, error) { return len(dst), nil },
				func([][]byte) (int, error) { go isReady(s); return 0, nil }, func(error) {})
		}, func(s *hbone.Stream) {
			said := false
			attach(s, func(dst []byte) (n int, err error) {
				if !said {
					n = 1
				}
				said = true
				return n, nil
			}, takeAll, func(error) {})
			isReady(s)
		})
	})
}

// endless attaches an end that always has something to say.
func endless(s *hbone.Stream) {
	attach(s, func(dst []byte) (int, error) { return len(dst), nil }, takeAll, func(error) {})
	isReady(s)
}

func takeAll(bufs [][]byte) (n int, err error) {
	for _, b := range bufs {
		n += len(b)
	}
	return n, nil
}

func bulkHasATunnelOfItsOwn(t *testing.T, answer, endless func(*hbone.Stream)) {
	r := newRig(t, "", func(r *rig) {
		r.answer = func(in *hbone.Incoming) { answer(in.Accept(nil)) }
	})
	open := func() *hbone.Stream {
		s, err := r.pool.Open(t.Context(), r.key(), hbone.Request{Authority: "a:1"})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	bulk, beside := open(), open()
	defer beside.Reset(errors.New("enough"))
	if n := r.pool.Stats().Tunnels; n != 1 {
		t.Fatalf("%d tunnels for two streams that begin together", n)
	}
	endless(bulk)
	defer bulk.Reset(errors.New("enough"))
	waitUntil(t, "a stream beside bulk has a tunnel of its own", func() bool {
		s := open()
		defer s.Reset(errors.New("enough"))
		return s.LocalAddr().String() != bulk.LocalAddr().String()
	})
	for range 6 {
		more := open()
		defer more.Reset(errors.New("enough"))
		endless(more)
		time.Sleep(2 * hbone.BusyAfter)
	}
	// Fewer where bulk comes too slowly to count as such.
	if n := r.pool.Stats().Tunnels; n < 2 || n > hbone.MaxBusy {
		t.Errorf("%d tunnels when all carry bulk, want %d at most", n, hbone.MaxBusy)
	}
}
