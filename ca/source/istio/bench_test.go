package istio_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/server"
	"github.com/warren-mesh/warren/ca/svid"
)

// limitless authorizes everything, and counts what is asked at once.
type limitless struct {
	mu       sync.Mutex
	now, top int
}

func (l *limitless) Allowed(server.Caller, spiffeid.ID) error { return nil }

// counted is a Signer whose calls are counted while they last.
type counted struct {
	svid.Signer
	all *limitless
}

func (c counted) Sign(ctx context.Context, id spiffeid.ID, csr []byte, ttl time.Duration) ([]string, error) {
	c.all.enter(1)
	defer c.all.enter(-1)
	return c.Signer.Sign(ctx, id, csr, ttl)
}

func (l *limitless) enter(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now += n
	l.top = max(l.top, l.now)
}

// BenchmarkColdStart brings up a node with 5,000 identities (WARREN_IDENTITIES) against our CA over TLS, with the rates of
// both as they are by default and without: seconds until half and 99 in a hundred are served, and the most calls at once.
func BenchmarkColdStart(b *testing.B) {
	identities := 5000
	if v := os.Getenv("WARREN_IDENTITIES"); v != "" {
		var err error
		if identities, err = strconv.Atoi(v); err != nil {
			b.Fatal(err)
		}
	}
	for name, rate := range map[string]float64{"50 a second": 0, "as fast as it goes": 1e6} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				coldStart(b, identities, rate)
			}
		})
	}
}

func coldStart(b *testing.B, identities int, rate float64) {
	c := &ca{authority: newAuthority(b), tokens: filepath.Join(b.TempDir(), "tokens")}
	if err := os.WriteFile(c.tokens, []byte(token+" node-1\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	tokens, err := server.NewTokens(c.tokens, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	all := &limitless{}
	burst := 0
	if rate > 0 {
		burst = identities
	}
	s, err := server.New(server.Config{Authority: c.authority, TrustDomain: td, Authenticator: tokens, Authorizer: all, Rate: rate, Burst: burst})
	if err != nil {
		b.Fatal(err)
	}
	c.serve(b, "127.0.0.1:0", s.Register)
	served := &arrivals{}
	m := start(b, svid.Config{Signer: counted{newSigner(b, c.config()), all}, MaxIdentities: identities, PerSecond: rate, Burst: burst, Observer: served})
	begin := time.Now()
	for n := range identities {
		m.Prefetch(spiffeid.RequireFromPath(td, fmt.Sprint("/ns/app/sa/", n)), "node")
	}
	times := served.wait(identities)
	b.ReportMetric(times[identities/2].Sub(begin).Seconds(), "s_50%")
	b.ReportMetric(times[identities*99/100].Sub(begin).Seconds(), "s_99%")
	b.ReportMetric(float64(all.top), "most_in_flight")
	if all.top > 8 {
		b.Errorf("%d calls at once, the cap is 8", all.top)
	}
}

// arrivals notes when certificates come.
type arrivals struct {
	mu sync.Mutex
	at []time.Time
}

func (a *arrivals) Started(spiffeid.ID, svid.Priority) {}

func (a *arrivals) Finished(_ spiffeid.ID, _ svid.Priority, _ time.Duration, err error) {
	if err == nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.at = append(a.at, time.Now())
	}
}

func (a *arrivals) Noted(spiffeid.ID, svid.Note) {}

func (a *arrivals) wait(n int) []time.Time {
	for {
		a.mu.Lock()
		at := slices.Clone(a.at)
		a.mu.Unlock()
		if len(at) >= n {
			return at
		}
		time.Sleep(10 * time.Millisecond)
	}
}
