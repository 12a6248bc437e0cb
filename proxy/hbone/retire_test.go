package hbone_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"
	"testing"

	"github.com/warren-mesh/warren/proxy/hbone"
)

// What lives goes on, what comes takes another tunnel, and the old one closes after its last stream.
func TestPoolRetire(t *testing.T) {
	r := newRig(t, "", func(r *rig) { r.answer = acceptAll })
	p := newCountingPool(t, r, hbone.Config{})
	open := func() func() {
		s, err := p.Open(context.Background(), r.key(), request())
		if err != nil {
			t.Fatal(err)
		}
		return discard(s)
	}
	stop := open()
	p.Retire()
	stopNext := open()
	if got := p.dials.Load(); got != 2 {
		t.Errorf("%d dials, want 2", got)
	}
	if got, want := p.Stats(), (hbone.Stats{Keys: 1, Tunnels: 2, Streams: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	stop()
	waitUntil(t, "the old tunnel ends", func() bool { return p.Stats() == hbone.Stats{Keys: 1, Tunnels: 1, Streams: 1} })
	p.Retire()
	stopNext()
	waitUntil(t, "all have ended", func() bool { return p.Stats() == hbone.Stats{} })
}

// A tunnel whose dial had begun before is none for what comes after.
func TestPoolRetireWhileDialing(t *testing.T) {
	r := newRig(t, "", func(r *rig) { r.answer = acceptAll })
	client := r.pki.client(t, "client")
	var dials atomic.Int64
	begun, goOn := make(chan struct{}), make(chan struct{})
	p := hbone.NewPool(hbone.Config{Records: records}, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
		if dials.Add(1) == 1 {
			close(begun)
			<-goOn
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", k.Dst.String())
		return c, client, err
	})
	defer p.Close()
	opened := make(chan error, 1)
	go func() {
		s, err := p.Open(context.Background(), r.key(), request())
		if err == nil {
			discard(s)
		}
		opened <- err
	}()
	<-begun
	p.Retire()
	close(goOn)
	if err := <-opened; err != nil {
		t.Error(err)
	}
	if n := dials.Load(); n != 2 {
		t.Errorf("%d dials, want 2: what is new went through what was made before", n)
	}
	waitUntil(t, "the late one ends", func() bool { return p.Stats() == hbone.Stats{Keys: 1, Tunnels: 1, Streams: 1} })
}

// Whoever calls everybody once leaves no tunnel to each: those that have been idle for longest go, those in use stay.
func TestPoolIsBounded(t *testing.T) {
	const most = 4
	r := newRig(t, "", func(r *rig) { r.answer = acceptAll })
	p := newCountingPool(t, r, hbone.Config{})
	p.Keep(most)
	key := func(i int) hbone.Key {
		k := r.key()
		k.Expected = fmt.Sprint(i)
		return k
	}
	call := func(i int) func() {
		s, err := p.Open(context.Background(), key(i), request())
		if err != nil {
			t.Fatal(err)
		}
		return discard(s)
	}
	stop := call(0)
	for i := 1; i <= 3*most; i++ {
		call(i)()
		waitUntil(t, "it is idle", func() bool { return p.Stats().Streams == 1 })
	}
	waitUntil(t, "the older ones end", func() bool { return p.Stats().Tunnels == most })
	for i := range most - 1 { // the newest, and the one in use
		call(3*most - i)()
	}
	call(0)()
	if n := p.dials.Load(); n != 1+3*most {
		t.Errorf("%d dials, want %d", n, 1+3*most)
	}
	stop()
}
