package hbone_test

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
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
	pool := hbone.NewPool(hbone.Config{Records: records}, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
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

// TestPoolUnderFailingDials: whoever waits for a dial that fails, hangs or is given
// up gets an answer, and no key is remembered for it.
func TestPoolUnderFailingDials(t *testing.T) {
	r := newRig(t, "", func(r *rig) { r.answer = acceptAll })
	client := r.pki.client(t, "client")
	pool := hbone.NewPool(hbone.Config{Records: records}, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
		switch rand.IntN(4) {
		case 0:
			return nil, nil, errors.New("refused")
		case 1:
			<-ctx.Done() // until nobody waits
			return nil, nil, ctx.Err()
		case 2:
			c, s := net.Pipe() // a peer that hangs up in the handshake
			go func() {
				_, _ = s.Read(make([]byte, 1))
				s.Close()
			}()
			return c, client, nil
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", k.Dst.String())
		return c, client, err
	})
	var wg sync.WaitGroup
	var opened, failed atomic.Int32
	for i := range 400 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+rand.IntN(200))*time.Millisecond)
			defer cancel()
			key := r.key()
			key.Expected = strconv.Itoa(i % 20)
			s, err := pool.Open(ctx, key, hbone.Request{Authority: "a:1"})
			if err != nil {
				failed.Add(1)
				return
			}
			opened.Add(1)
			s.Reset(errors.New("enough"))
		})
	}
	wg.Wait()
	t.Logf("%d opened, %d failed", opened.Load(), failed.Load())
	for {
		s := pool.Stats()
		if s.Streams == 0 && s.Keys <= s.Tunnels { // dials that were given up have ended
			break
		}
		runtime.Gosched()
	}
	if err := pool.Close(); err != nil {
		t.Error(err)
	}
	if s := pool.Stats(); s != (hbone.Stats{}) {
		t.Errorf("left: %+v", s)
	}
}
