package hbone_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone"
)

// storm is many peers, each with an address of its own, that make a tunnel each.
type storm struct {
	r     *rig
	pool  *hbone.Pool
	ended atomic.Int64
}

func newStorm(tb testing.TB, r *rig) *storm {
	client := r.pki.client(tb, "client")
	cfg := r.cfg
	cfg.IdleRelease = time.Second // both ends are here: ten thousand would need more descriptors than there may be
	s := &storm{r: r, pool: hbone.NewPool(cfg, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(k.SrcIP, 0))}
		c, err := d.DialContext(ctx, "tcp", k.Dst.String())
		return c, client, err
	})}
	tb.Cleanup(func() { s.pool.Close() })
	return s
}

func loopback(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}) }

// run has n peers make their tunnels at once and send a CONNECT each, which is
// refused. It returns when all have ended, with their errors.
func (s *storm) run(n int) (wrong []error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range n {
		key := s.r.key()
		key.SrcIP = loopback(i)
		wg.Go(func() {
			_, err := s.pool.Open(context.Background(), key, hbone.Request{Authority: "127.0.0.1:1"})
			s.ended.Add(1)
			var status *hbone.StatusError
			if !errors.As(err, &status) {
				mu.Lock()
				wrong = append(wrong, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return wrong
}

// silent opens n connections that say nothing.
func (r *rig) silent(tb testing.TB, n int) {
	for range n {
		dial(tb, r.hbone.Addr().String())
	}
}

// TestStorm: thousands of peers that come at once are all served, and beside them
// an old connection goes on being served. Peers that connect and say nothing hold
// up nobody. WARREN_STORM_PEERS says how many there are.
func TestStorm(t *testing.T) {
	peers, batch := int64(2000), int64(200)
	if n, err := strconv.ParseInt(os.Getenv("WARREN_STORM_PEERS"), 10, 64); err == nil {
		peers = max(n, batch)
	} else if testing.Short() {
		peers = 400
	}
	// Both ends compute in one place, by turns: it takes what it takes.
	patience := max(3*time.Minute, time.Duration(peers)*30*time.Millisecond) // under the race detector and beside others, too
	r := newRig(t, serveApp(t, echo), func(r *rig) {
		r.cfg.Gate, r.cfg.HandshakeTimeout = hbone.PatientGate(1, patience), patience
	})
	live := r.dial()
	mustWrite(t, live, []byte("x"))
	mustRead(t, live, "x")
	r.silent(t, 200)
	s := newStorm(t, r)
	began := time.Now()
	var served, least atomic.Int64
	least.Store(1 << 62)
	over := make(chan struct{})
	go func() {
		defer close(over)
		// Between every so many handshakes the old connection must have got on.
		at, before := int64(0), int64(0)
		for s.ended.Load() < peers {
			mustWrite(t, live, []byte("x"))
			mustRead(t, live, "x")
			n := served.Add(1)
			if e := s.ended.Load(); e/batch > at {
				least.Store(min(least.Load(), (n-before)/(e/batch-at)))
				at, before = e/batch, n
			}
		}
	}()
	for _, err := range s.run(int(peers)) {
		t.Error(err)
	}
	<-over
	t.Logf("%d round trips beside %d handshakes in %v, at least %d beside every %d", served.Load(), peers, time.Since(began), least.Load(), batch)
	if least.Load() < 1 {
		t.Errorf("the old connection was not served beside %d handshakes", batch)
	}
}

// deaf is a connection from which nothing is read until it is closed.
type deaf struct {
	net.Conn
	closed chan struct{}
}

func (d deaf) Read([]byte) (int, error) { <-d.closed; return 0, io.EOF }

// TestStormOfOnePeer: handshakes that a peer begins and leaves lying hold up that
// peer's next ones until they end, and no other's.
func TestStormOfOnePeer(t *testing.T) {
	r := newRig(t, serveApp(t, echo), func(r *rig) {
		r.cfg.Gate = hbone.PatientGate(1, time.Minute)
		r.cfg.HandshakeTimeout = time.Minute
	})
	closed := make(chan struct{})
	var wg sync.WaitGroup
	for range hbone.PeerHandshakes {
		c := deaf{dial(t, r.hbone.Addr().String()), closed} // from 127.0.0.1
		wg.Go(func() {
			_ = tls.Client(c, r.pki.client(t, "client")).Handshake()
			c.Close()
		})
	}
	peer := func() [2]int { return r.cfg.Gate.Peer(netip.MustParseAddr("127.0.0.1")) }
	waitUntil(t, "all of them are under way", func() bool { return peer() == [2]int{hbone.PeerHandshakes, 0} })
	if wrong := newStorm(t, r).run(10); len(wrong) > 0 {
		t.Error(wrong)
	}
	c := r.dial()
	waitUntil(t, "the next one waits", func() bool { return peer() == [2]int{hbone.PeerHandshakes, 1} })
	close(closed)
	wg.Wait()
	mustWrite(t, c, []byte("hello"))
	mustRead(t, c, "hello")
}

// TestGateIsFreeAroundWaits: a server that waits for its certificate holds no
// place.
func TestGateIsFreeAroundWaits(t *testing.T) {
	r := newRig(t, serveApp(t, echo), func(r *rig) { r.cfg.Gate = hbone.PatientGate(1, time.Minute) })
	asked, give := make(chan struct{}), make(chan struct{})
	server := r.pki.server(t, "server")
	slow := server.Clone()
	slow.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		close(asked)
		<-give
		return server, nil
	}
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() {
		served <- hbone.Serve(context.Background(), r.ctx, far, slow, r.cfg, hbone.HandlerFunc(r.connect))
	}()
	client := tls.Client(near, r.pki.client(t, "client"))
	shaken := make(chan error, 1)
	go func() { shaken <- client.Handshake() }()
	<-asked
	c := r.dial() // two handshakes more
	mustWrite(t, c, []byte("hello"))
	mustRead(t, c, "hello")
	close(give)
	if err := <-shaken; err != nil {
		t.Error(err)
	}
	near.Close()
	<-served
}

// TestTurnTooLate: a handshake that does not get its turn ends with an error that
// says so, and one whose peer is slow with another.
func TestTurnTooLate(t *testing.T) {
	pki := newPKI(t)
	serve := func(t *testing.T, g *hbone.Gate, feed func(net.Conn)) (time.Duration, error) {
		near, far := net.Pipe()
		var wg sync.WaitGroup
		defer wg.Wait()
		defer near.Close()
		wg.Go(func() { feed(near) })
		cfg := hbone.Config{Gate: g, Records: records}
		start := time.Now()
		err := hbone.Serve(context.Background(), t.Context(), far, pki.server(t, "server"), cfg, hbone.HandlerFunc(func(*hbone.Incoming) {}))
		return time.Since(start), err
	}
	t.Run("no turn", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := hbone.PatientGate(1, time.Second)
			g.Hold()
			_, err := serve(t, g, func(c net.Conn) { _ = tls.Client(c, pki.client(t, "client")).Handshake() })
			if !errors.Is(err, hbone.ErrBusy) {
				t.Error(err)
			}
		})
	})
	t.Run("byte by byte", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := hbone.PatientGate(1, time.Second)
			g.Hold() // a turn would never come
			took, err := serve(t, g, func(c net.Conn) {
				for _, b := range []byte(strings.Repeat("\x16\x03\x01\x20", 1<<10)) {
					if _, err := c.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			})
			if !errors.Is(err, hbone.ErrTimeout) || took != 10*time.Second {
				t.Error(err, took)
			}
		})
	})
}

// BenchmarkStorm is 2,000 handshakes at once, both ends in this process, and what
// a connection that is in use has of it: its round trips while they last.
func BenchmarkStorm(b *testing.B) {
	for _, gated := range []bool{false, true} {
		b.Run(fmt.Sprintf("gate=%v", gated), func(b *testing.B) {
			r := newRig(b, serveApp(b, echo), func(r *rig) {
				if gated {
					r.cfg.Gate = hbone.PatientGate(1, time.Minute)
				}
			})
			live := r.dial()
			var trips []time.Duration
			for b.Loop() {
				s := newStorm(b, r)
				stop, over := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(over)
					for one := make([]byte, 1); ; {
						select {
						case <-stop:
							return
						default:
						}
						start := time.Now()
						if _, err := live.Write(one); err != nil {
							b.Error(err)
							return
						}
						if _, err := io.ReadFull(live, one); err != nil {
							b.Error(err)
							return
						}
						trips = append(trips, time.Since(start))
					}
				}()
				for _, err := range s.run(2000) {
					b.Error(err)
				}
				close(stop)
				<-over
				s.pool.Close()
			}
			slices.Sort(trips)
			at := func(q float64) float64 { return float64(trips[int(q*float64(len(trips)-1))].Microseconds()) }
			b.ReportMetric(at(0.5), "p50-µs")
			b.ReportMetric(at(0.99), "p99-µs")
			b.ReportMetric(at(1), "max-µs")
			b.ReportMetric(float64(len(trips))/float64(b.N), "trips/op")
		})
	}
}
