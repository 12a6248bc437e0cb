package workloadapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/workloadapi"
	"github.com/warren-mesh/warren/ca/svid"
)

var (
	td   = spiffeid.RequireTrustDomainFromString("td.test")
	self = spiffeid.RequireFromPath(td, "/proxy")
)

// words is a Watcher that says what a test has it say. An error ends the stream.
type words chan any

func (w words) Watch(ctx context.Context, _ svid.Pod, _ spiffeid.ID, emit func(svid.Update)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case said := <-w:
			if err, ok := said.(error); ok {
				return err
			}
			emit(said.(svid.Update))
		}
	}
}

// issue makes an SVID by a clock that is ahead of ours.
func issue(t *testing.T, f authority.Files, ahead time.Duration) svid.Update {
	t.Helper()
	now := time.Now()
	a, err := authority.Load(f, authority.Policy{}, now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{self.URL()}}, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := a.Sign(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), self, time.Hour, now.Add(2*time.Minute+ahead)) // it back-dates by two
	if err != nil {
		t.Fatal(err)
	}
	chain, err := mtls.ParsePEM([]byte(leaf.Chain[0]), 1)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := mtls.ParsePEM(a.RootsPEM(), 1)
	if err != nil {
		t.Fatal(err)
	}
	return svid.Update{SVIDs: []svid.SVID{{ID: self, Key: key, Chain: chain, Roots: roots}}}
}

// A root that goes is not believed any more, also where the identity itself hangs from it.
func TestTheRootGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := authority.Create(td, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		w := make(words)
		s := workloadapi.NewSelf(w, self, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		u := issue(t, f, 0)
		for name, roots := range map[string][]*x509.Certificate{"it stays": u.SVIDs[0].Roots, "it has gone": nil} {
			w <- u
			synctest.Wait()
			peer := u.SVIDs[0].Chain
			u := svid.Update{SVIDs: []svid.SVID{u.SVIDs[0]}}
			u.SVIDs[0].Roots = roots
			w <- u
			synctest.Wait()
			i, err := s.Identity(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := i.VerifyPeer(peer, x509.ExtKeyUsageServerAuth, time.Now()); (err == nil) != (roots != nil) {
				t.Errorf("%s: %v", name, err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// The proxy's own identity, when it comes before its time, is there when that comes, unless it was taken back meanwhile.
func TestAnEarlyIdentity(t *testing.T) {
	for name, tc := range map[string]struct {
		ahead time.Duration
		then  any // said after ten seconds
		has   bool
	}{
		"valid at once":          {ahead: 0, has: true},
		"half a minute early":    {ahead: 30 * time.Second, has: true},
		"an outage meanwhile":    {ahead: 30 * time.Second, then: errors.New("gone"), has: true},
		"taken back meanwhile":   {ahead: 30 * time.Second, then: &svid.WithdrawnError{Err: errors.New("denied")}},
		"nothing after all":      {ahead: 30 * time.Second, then: svid.Update{}},
		"an hour early, refused": {ahead: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, err := authority.Create(td, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				w := make(words)
				s := workloadapi.NewSelf(w, self, slog.New(slog.DiscardHandler))
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- s.Run(ctx) }()
				w <- issue(t, f, tc.ahead)
				synctest.Wait()
				has := func() bool {
					now, stop := context.WithTimeout(ctx, 0)
					defer stop()
					_, err := s.Identity(now)
					return err == nil
				}
				if has() != (tc.ahead == 0) {
					t.Errorf("has one at once: %v", has())
				}
				time.Sleep(10 * time.Second)
				if tc.then != nil {
					w <- tc.then
				}
				time.Sleep(21 * time.Second)
				if has() != tc.has {
					t.Errorf("has one later: %v, want %v", has(), tc.has)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
