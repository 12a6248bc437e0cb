package hbone_test

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/ready"
	"github.com/warren-mesh/warren/proxy/relay"
)

// records is the record layer that tests run on, serverRecords that of a rig's server.
var records, serverRecords hbone.Records

// TestMain runs every test and benchmark twice, once on each record layer, and those
// that move much between two proxies once more with one at each end, and the other
// way round.
func TestMain(m *testing.M) { goleak.VerifyTestMain(onBoth{m}) }

type onBoth struct{ m *testing.M }

// mixed are the tests that are worth it.
const mixed = "^Test(Checksums|OneByteWrites|Reset|SlowReaders|Stress|Torture)$"

func (b onBoth) Run() (code int) {
	flag.Parse()
	run := flag.Lookup("test.run")
	for _, r := range []struct {
		name           string
		client, server hbone.Records
	}{
		{"own", hbone.OwnRecords, hbone.OwnRecords},
		{"stock", hbone.StockRecords, hbone.StockRecords},
		{"own to stock", hbone.OwnRecords, hbone.StockRecords},
		{"stock to own", hbone.StockRecords, hbone.OwnRecords},
	} {
		if r.client != r.server && flag.Lookup("test.bench").Value.String() != "" {
			break // each layer has been measured
		}
		if r.client != r.server && run.Value.String() == "" {
			_ = run.Value.Set(mixed)
			defer func() { _ = run.Value.Set("") }()
		}
		fmt.Println("records:", r.name)
		records, serverRecords = r.client, r.server
		code = max(code, b.m.Run())
	}
	return code
}

// rig is two proxies without policy, and what applications see of them: dial
// makes a connection that goes through the client's relay, a tunnel and the
// server's relay to backend's listener.
type rig struct {
	tb     testing.TB
	pki    *pki
	cfg    hbone.Config
	pool   *hbone.Pool
	hbone  net.Listener // the server's tunnel port
	front  net.Listener // the client's port for applications
	relay  *relay.Relay
	ctx    context.Context
	drain  context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	kill   map[net.Conn]context.CancelFunc // tunnels accepted
	served []error                         // what Serve returned
	// Results of the relays on both sides.
	clientDone, serverDone chan relay.Result
	answer                 func(*hbone.Incoming) // nil: connect and relay
	onFlow                 func(*relay.Flow)     // of the client's side; may be nil
}

func newRig(tb testing.TB, backend string, change func(*rig)) *rig {
	tb.Helper()
	r := &rig{
		tb: tb, pki: newPKI(tb), kill: map[net.Conn]context.CancelFunc{},
		clientDone: make(chan relay.Result, 4096), serverDone: make(chan relay.Result, 4096),
	}
	if change != nil {
		change(r)
	}
	r.cfg.Records = records
	r.ctx, r.drain = context.WithCancel(context.Background())
	r.relay, r.cfg.Ready = newRelay(tb)
	r.hbone, r.front = listen(tb), listen(tb)
	client, server := r.pki.client(tb, "client"), r.pki.server(tb, "server")
	r.pool = hbone.NewPool(r.cfg, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", k.Dst.String())
		return c, client, err
	})
	r.wg.Go(func() { r.acceptTunnels(server) })
	r.wg.Go(func() { r.acceptApps(backend) })
	tb.Cleanup(r.close)
	return r
}

func newRelay(tb testing.TB) (*relay.Relay, *ready.Set) {
	tb.Helper()
	set, err := ready.New(1)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = set.Close() })
	return relay.New(set), set
}

// near is three funcs as the end of a stream that an application would be.
type near struct {
	pull func([]byte) (int, error)
	push func([][]byte) (int, error)
	end  func(error)
}

func (n near) Pull(dst []byte) (int, error)    { return n.pull(dst) }
func (n near) Push(bufs [][]byte) (int, error) { return n.push(bufs) }
func (n near) End(err error)                   { n.end(err) }

// isReady says so of a stream's near end, and has it flushed.
func isReady(s *hbone.Stream) {
	if f := s.Ready(); f != nil {
		f.Flush()
	}
}

func attach(s *hbone.Stream, pull func([]byte) (int, error), push func([][]byte) (int, error), end func(error)) {
	s.Attach(near{pull, push, end})
}

func (r *rig) close() {
	r.front.Close()
	r.hbone.Close()
	r.pool.Close()
	r.drain()
	r.killTunnels()
	r.wg.Wait()
}

// killTunnels closes the server's end of every tunnel.
func (r *rig) killTunnels() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, kill := range r.kill {
		kill()
	}
}

func (r *rig) key() hbone.Key {
	return hbone.Key{Dst: r.hbone.Addr().(*net.TCPAddr).AddrPort(), SrcIP: netip.MustParseAddr("127.0.0.1")}
}

func (r *rig) acceptTunnels(tc *tls.Config) {
	for {
		c, err := r.hbone.Accept()
		if err != nil {
			return
		}
		ctx, kill := context.WithCancel(context.Background())
		r.mu.Lock()
		r.kill[c] = kill
		r.mu.Unlock()
		r.wg.Go(func() {
			cfg := r.cfg
			cfg.Records = serverRecords
			err := hbone.Serve(ctx, r.ctx, c, tc, cfg, hbone.HandlerFunc(r.connect))
			kill()
			r.mu.Lock()
			delete(r.kill, c)
			r.served = append(r.served, err)
			r.mu.Unlock()
		})
	}
}

func (r *rig) connect(in *hbone.Incoming) {
	if r.answer != nil {
		r.answer(in)
		return
	}
	r.wg.Go(func() {
		app, err := net.Dial("tcp", in.Authority)
		if err != nil {
			in.Reject(503)
			return
		}
		s := in.Accept([][2]string{{"baggage", "k8s.namespace.name=default"}})
		r.relay.Start(app.(*net.TCPConn), s, nil, func(res relay.Result) { r.serverDone <- res })
	})
}

func (r *rig) acceptApps(backend string) {
	for {
		c, err := r.front.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() {
			s, err := r.pool.Open(context.Background(), r.key(), hbone.Request{Authority: backend})
			if err != nil {
				if !errors.Is(err, hbone.ErrClosed) {
					r.tb.Log("open:", err)
				}
				c.Close()
				return
			}
			f := r.relay.Start(c.(*net.TCPConn), s, nil, func(res relay.Result) { r.clientDone <- res })
			if r.onFlow != nil {
				r.onFlow(f)
			}
		})
	}
}

// dial is an application's connection.
func (r *rig) dial() *net.TCPConn {
	r.tb.Helper()
	return dial(r.tb, r.front.Addr().String())
}

func dial(tb testing.TB, addr string) *net.TCPConn {
	tb.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func listen(tb testing.TB) net.Listener {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	return l
}

// serveApp runs f for every connection to the listener it returns the address of.
func serveApp(tb testing.TB, f func(*net.TCPConn)) string {
	tb.Helper()
	l := listen(tb)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				f(c.(*net.TCPConn))
			})
		}
	})
	tb.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// echo sends back what it gets and half-closes after the peer did.
func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

func mustWrite(tb testing.TB, w io.Writer, p []byte) {
	tb.Helper()
	if _, err := w.Write(p); err != nil {
		tb.Fatal(err)
	}
}

func mustRead(tb testing.TB, r io.Reader, want string) {
	tb.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil {
		tb.Fatalf("reading %q: %v after %q", want, err, got)
	}
	if string(got) != want {
		tb.Fatalf("got %q, want %q", got, want)
	}
}

func mustEOF(tb testing.TB, r io.Reader) {
	tb.Helper()
	if n, err := r.Read(make([]byte, 16)); n != 0 || err != io.EOF {
		tb.Fatalf("read %d, %v; want the end", n, err)
	}
}
