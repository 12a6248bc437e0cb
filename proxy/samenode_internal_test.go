package proxy

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/proxy/track"
)

// issued gets a certificate from a CA of its own.
func issued(t *testing.T, ids ...string) (out []*mtls.Identity) {
	t.Helper()
	ca, err := fake.New(spiffeid.RequireTrustDomainFromString("cluster.local"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	m := svid.New(svid.Config{Signer: ca})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = m.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	for _, id := range ids {
		i, err := m.Acquire(svid.Pod{UID: "pod"}, spiffeid.RequireFromString(id)).Identity(ctx)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, i)
	}
	return out
}

// Two ends on one node check of each other what a handshake would.
func TestNeighboursProveThemselves(t *testing.T) {
	const a, b, other = "spiffe://cluster.local/ns/x/sa/a", "spiffe://cluster.local/ns/x/sa/b", "spiffe://cluster.local/ns/x/sa/other"
	pair, stranger := issued(t, a, b), issued(t, a, b)
	both, err := mtls.NewRoots(append(pair[0].Roots(), stranger[0].Roots()...))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, tc := range []struct {
		name         string
		mine, theirs *mtls.Identity
		at           time.Time
		ok           bool
		by           track.Direction // who refuses
		left         string          // why another endpoint may be asked
	}{
		{"one CA", pair[0], pair[1], now, true, 0, ""},
		{"we do not trust the destination's CA", pair[0], stranger[1].WithRoots(both), now, false, track.Outbound, leftIdentity},
		{"the destination does not trust ours", pair[0].WithRoots(both), stranger[1], now, false, track.Inbound, ""},
		{"two CAs, both trusted by both", pair[0].WithRoots(both), stranger[1].WithRoots(both), now, true, 0, ""},
		{"ended", pair[0], pair[1], pair[0].NotAfter().Add(time.Second), false, track.Outbound, leftIdentity},
	} {
		if by, err := acceptEachOther(tc.mine, tc.theirs, tc.at); (err == nil) != tc.ok || by != tc.by {
			t.Errorf("%s: %v, by the %s", tc.name, err, reporter(by))
		} else if left := leftBecause(err); left != tc.left {
			t.Errorf("%s: left because of %q, want %q", tc.name, left, tc.left)
		}
	}
	id := spiffeid.RequireFromString
	for _, tc := range []struct {
		name     string
		self     string
		expected []spiffeid.ID
		ok       bool
		left     string
	}{
		{"as named", a, []spiffeid.ID{id(other), id(b)}, true, ""},
		{"another destination is expected", a, []spiffeid.ID{id(other)}, false, leftIdentity},
		{"nobody is expected", a, nil, false, leftIdentity},
		{"the source is somebody else by now", other, []spiffeid.ID{id(b)}, false, ""},
		{"both are", other, []spiffeid.ID{id(other)}, false, ""},
	} {
		if err := asNamed(pair[0], pair[1], id(tc.self), route.Identities{SANs: tc.expected[:len(tc.expected)/2], Own: tc.expected[len(tc.expected)/2:]}); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		} else if left := leftBecause(err); left != tc.left {
			t.Errorf("%s: left because of %q, want %q", tc.name, left, tc.left)
		}
	}
	var p pairs
	if p.has(pair[0], pair[1]) {
		t.Error("an empty memory knows a pair")
	}
	p.add(pair[0], pair[1])
	if !p.has(pair[0], pair[1]) || p.has(pair[1], pair[0]) || p.has(pair[0], stranger[1]) {
		t.Error("the memory of pairs is wrong")
	}
}
