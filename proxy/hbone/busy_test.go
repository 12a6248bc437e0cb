package hbone_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone"
)

// TestABusyTunnelIsBetterThanNone: who opens a stream beside bulk does without a
// tunnel of its own when that fails, or takes long.
func TestABusyTunnelIsBetterThanNone(t *testing.T) {
	for name, second := range map[string]func(context.Context){
		"fails": func(context.Context) {},
		"hangs": func(ctx context.Context) { <-ctx.Done() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "", func(r *rig) { r.answer = func(in *hbone.Incoming) { discard(in.Accept(nil)) } })
			client := r.pki.client(t, "client")
			var dials atomic.Int32
			pool := hbone.NewPool(r.cfg, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
				if dials.Add(1) > 1 {
					second(ctx)
					return nil, nil, errors.New("no second one")
				}
				var d net.Dialer
				c, err := d.DialContext(ctx, "tcp", k.Dst.String())
				return c, client, err
			})
			defer pool.Close()
			open := func() *hbone.Stream {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				s, err := pool.Open(ctx, r.key(), request())
				if err != nil {
					t.Fatalf("after %d dials: %v", dials.Load(), err)
				}
				return s
			}
			bulk := open()
			defer bulk.Reset(errors.New("enough"))
			attach(bulk, func(dst []byte) (int, error) { return len(dst), nil }, func([][]byte) (int, error) { return 0, nil }, func(error) {})
			isReady(bulk)
			waitUntil(t, "a second tunnel is wanted", func() bool {
				open().Reset(errors.New("enough"))
				return dials.Load() > 1
			})
			start := time.Now()
			for range 20 { // a dial that hangs is waited for once, not by each
				open().Reset(errors.New("enough"))
			}
			if took := time.Since(start); took > 4*time.Second {
				t.Errorf("20 streams took %s", took)
			}
		})
	}
}
