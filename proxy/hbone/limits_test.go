package hbone_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/warren-mesh/warren/proxy/hbone"
)

// TestPeerThatAllowsNoStreams must not make us hold a tunnel for every attempt.
func TestPeerThatAllowsNoStreams(t *testing.T) {
	p := newPKI(t)
	l := listen(t)
	var wg sync.WaitGroup
	tc := p.server(t, "server")
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				s := tls.Server(c, tc)
				buf := make([]byte, len(http2.ClientPreface))
				if _, err := s.Read(buf); err != nil {
					return
				}
				fr := http2.NewFramer(s, s)
				fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
				for {
					f, err := fr.ReadFrame()
					if err != nil {
						return
					}
					if h, ok := f.(*http2.HeadersFrame); ok {
						fr.WriteRSTStream(h.StreamID, http2.ErrCodeRefusedStream)
					}
				}
			})
		}
	})
	client := p.client(t, "client")
	pool := hbone.NewPool(hbone.Config{}, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", k.Dst.String())
		return c, client, err
	})
	for range 20 {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, err := pool.Open(ctx, hbone.Key{Dst: l.Addr().(*net.TCPAddr).AddrPort()}, hbone.Request{Authority: "a:1"})
		cancel()
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Open: %v", err)
		}
	}
	for pool.Stats().Tunnels > 2 { // those of the last attempt are on their way out
		runtime.Gosched()
	}
	pool.Close()
	l.Close()
	wg.Wait()
}
