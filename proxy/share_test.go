package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/proxy/track"
)

// A pod with very many sockets leaves the others theirs.
func TestShare(t *testing.T) {
	s := newShare(1600) // beyond 1200 who has less than 100
	hog, other := new(pod), new(pod)
	fill := func(p *pod) (n int) {
		for s.take(p) == nil {
			n++
		}
		return n
	}
	if n := fill(hog); n != 1200 {
		t.Errorf("the first gets %d", n)
	}
	if n := fill(other); n != 100 {
		t.Errorf("the second gets %d", n)
	}
	for range 200 {
		s.give(hog)
	}
	if n := fill(other); n != 100 {
		t.Errorf("the second gets %d more of those given back", n)
	}
	for range 1000 {
		s.give(hog)
	}
	for range 200 {
		s.give(other)
	}
	if s.total != 0 || len(s.pods) != 0 {
		t.Errorf("%d left, of %d pods", s.total, len(s.pods))
	}
}

// A tunnel takes no more connections when the first of two certificates ends.
func TestUntil(t *testing.T) {
	ends := time.Now().Add(time.Hour).Truncate(time.Second)
	peer := tls.ConnectionState{PeerCertificates: []*x509.Certificate{{NotAfter: ends}}}
	ca, err := fake.New(spiffeid.RequireTrustDomainFromString("cluster.local"), nil)
	if err != nil {
		t.Fatal(err)
	}
	certs := svid.New(svid.Config{Signer: ca, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- certs.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	lease := certs.Acquire(svid.Pod{UID: "u"}, spiffeid.RequireFromString("spiffe://cluster.local/ns/a/sa/b"))
	defer lease.Release()
	own, err := lease.Identity(ctx) // for a day
	if err != nil {
		t.Fatal(err)
	}
	p := new(pod)
	for _, tt := range []struct {
		name string
		cs   tls.ConnectionState
		want time.Time
	}{{"the peer's", peer, ends}, {"ours", tls.ConnectionState{}, own.NotAfter()}} {
		p.dials = map[hbone.Key]*mtls.Identity{{}: own}
		if got := p.until(hbone.Key{}, tt.cs); !got.Equal(tt.want.Add(-retireEarly)) || len(p.dials) != 0 {
			t.Errorf("%s ends first: %s, want %s before %s; %d left", tt.name, got, retireEarly, tt.want, len(p.dials))
		}
	}
	soon := time.Now().Add(time.Second)
	p.dials = map[hbone.Key]*mtls.Identity{}
	got := p.until(hbone.Key{}, tls.ConnectionState{PeerCertificates: []*x509.Certificate{{NotAfter: soon}}})
	if early := soon.Sub(got); early <= 0 || early > 100*time.Millisecond {
		t.Errorf("a certificate with a second left: %s before its end, want a tenth", early)
	}
}

// A pod that has a new namespace has its old UID: what the old one leaves behind
// must not take the new one's connections with it.
func TestStopSparesTheSuccessor(t *testing.T) {
	logs, _ := testLogs(t, LogConfig{Filter: "off"})
	s := &Server{logs: logs, tracked: track.New(10, 10), share: newShare(1600)}
	newPod := func() *pod {
		p := &pod{s: s, uid: "u", log: logs.scope("proxy"), sockets: sockopt.New(nil, sockopt.Defaults())}
		p.soft, p.close = context.WithCancelCause(t.Context())
		p.hard, p.kill = context.WithCancelCause(t.Context())
		p.pool = hbone.NewPool(hbone.Config{Log: p.log}, nil)
		return p
	}
	older, newer := newPod(), newPod()
	var conns []*connection
	for _, p := range []*pod{older, newer} {
		c, err := p.track(track.Facts{Pod: p.uid})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.reserve(); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	older.stop()
	if err := context.Cause(conns[0].ctx); !errors.Is(err, errDrain) || flagOf(err) != flagNone {
		t.Errorf("the old one's connection: %v", err)
	}
	if err := conns[1].ctx.Err(); err != nil {
		t.Errorf("the new one's connection was cut: %v", err)
	}
	late, err := older.track(track.Facts{Pod: "u"})
	if err != nil {
		t.Fatal(err)
	}
	if late.ctx.Err() == nil {
		t.Error("a connection that comes after the end lives")
	}
	late.end(nil)
	conns[0].end(nil)
	if newer.stop(); !errors.Is(context.Cause(conns[1].ctx), errDrain) {
		t.Error("the new one's connection outlived it")
	}
	conns[1].end(nil)
	if s.share.total != 0 || s.tracked.Len() != 0 {
		t.Errorf("left: %d sockets, %d guards", s.share.total, s.tracked.Len())
	}
}
