package hbone_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/relay"
)

// frameServer runs f for each tunnel that a client opens to the address it returns.
func frameServer(t testing.TB, p *pki, f func(*framed), settings ...http2.Setting) netip.AddrPort {
	t.Helper()
	l := listen(t)
	server := p.server(t, "server")
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, raw)
			mu.Unlock()
			wg.Go(func() {
				defer raw.Close()
				c := tls.Server(raw, server)
				if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
					return
				}
				fr := newFramed(quiet{t}, c, raw)
				_ = fr.fr.WriteSettings(settings...)
				f(fr)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// quiet is a test whose Fatal only ends the goroutine: a framed server's
// connection is closed under it at the end.
type quiet struct{ testing.TB }

func (quiet) Fatal(...any) { runtime.Goexit() }
func (quiet) Helper()      {}

// TestStockClient: the standard library's Transport speaks through our server.
func TestStockClient(t *testing.T) {
	r := newRig(t, "", nil)
	backend := serveApp(t, echo)
	client := r.pki.client(t, "stock")
	tr := &http.Transport{Protocols: http2Only(), DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&tls.Dialer{Config: client}).DialContext(ctx, "tcp", r.hbone.Addr().String())
	}}
	defer tr.CloseIdleConnections()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			pr, pw := io.Pipe()
			req := &http.Request{
				Method: "CONNECT", URL: &url.URL{Scheme: "https", Host: backend}, Host: backend,
				Header: http.Header{"Baggage": {"a=b"}}, Body: pr,
			}
			resp, err := tr.RoundTrip(req)
			if err != nil || resp.StatusCode != 200 {
				t.Errorf("%v, %v", resp, err)
				return
			}
			defer resp.Body.Close()
			go func() {
				_, _ = pw.Write(make([]byte, 1<<20))
				pw.Close()
			}()
			if n, err := io.Copy(io.Discard, resp.Body); n != 1<<20 || err != nil {
				t.Errorf("%d bytes back, %v", n, err)
			}
		})
	}
	wg.Wait()
	// Other methods are not for us.
	resp, err := tr.RoundTrip(&http.Request{Method: "GET", URL: &url.URL{Scheme: "https", Host: "x", Path: "/"}, Header: http.Header{}})
	if err != nil || resp.StatusCode != 400 {
		t.Errorf("GET: %v, %v", resp, err)
	}
}

// TestStockServer: our pool speaks to the standard library's server.
func TestStockServer(t *testing.T) {
	p := newPKI(t)
	l := listen(t)
	server, client := p.server(t, "stock"), p.client(t, "client")
	srv := &http.Server{Handler: http.HandlerFunc(stockEcho), TLSConfig: server, Protocols: http2Only()}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(l, "", "") }()
	pool := hbone.NewPool(hbone.Config{Records: records}, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
		c, err := net.Dial("tcp", k.Dst.String())
		return c, client, err
	})
	key := hbone.Key{Dst: l.Addr().(*net.TCPAddr).AddrPort()}
	flows, _ := newRelay(t)
	front := serveApp(t, func(c *net.TCPConn) {
		s, err := pool.Open(context.Background(), key, hbone.Request{Authority: "10.0.0.1:80"})
		if err != nil {
			t.Error(err)
			return
		}
		if b := s.Header("baggage"); len(b) != 1 || b[0] != "c=d" {
			t.Errorf("baggage %q", b)
		}
		done := make(chan relay.Result)
		flows.Start(c, s, nil, func(r relay.Result) { done <- r })
		if res := <-done; res.Err != nil || res.Sent != 1<<20 || res.Received != 1<<20 {
			t.Errorf("%+v", res)
		}
	})
	var apps sync.WaitGroup
	for range 20 {
		apps.Go(func() {
			c := dial(t, front)
			go func() {
				_, _ = c.Write(make([]byte, 1<<20))
				_ = c.CloseWrite()
			}()
			if n, err := io.Copy(io.Discard, c); n != 1<<20 || err != nil {
				t.Errorf("%d bytes back, %v", n, err)
			}
		})
	}
	apps.Wait()
	if _, err := pool.Open(context.Background(), key, hbone.Request{Authority: "refuse:1"}); fmt.Sprint(err) != "http status: 403 Forbidden" {
		t.Errorf("got %v", err)
	}
	pool.Close()
	srv.Close()
	<-served
}

func http2Only() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP2(true)
	return p
}

func stockEcho(w http.ResponseWriter, r *http.Request) {
	if r.Host == "refuse:1" {
		w.WriteHeader(403)
		return
	}
	w.Header().Set("baggage", "c=d")
	w.WriteHeader(200)
	f := w.(http.Flusher)
	f.Flush()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		_, _ = w.Write(buf[:n])
		f.Flush()
		if err != nil {
			return
		}
	}
}
