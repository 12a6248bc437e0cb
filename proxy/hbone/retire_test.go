package hbone_test

import (
	"context"
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
