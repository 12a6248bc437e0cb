package svid_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/svid"
)

// lateSigner signs at once and answers later, so that a part of the lifetime is lost on the way.
type lateSigner struct {
	*fake.Signer
	delay time.Duration
}

func (s *lateSigner) Sign(ctx context.Context, id spiffeid.ID, csr []byte, ttl time.Duration) ([]string, error) {
	chain, err := s.Signer.Sign(ctx, id, csr, ttl)
	select {
	case <-time.After(s.delay):
		return chain, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Certificates of ten seconds from a CA that needs three for its answer: nobody is ever without one, and none is used
// to its very end.
func TestSlowAnswersRotateWithoutAGap(t *testing.T) {
	for _, n := range []int{1, 12} {
		synctest.Test(t, func(t *testing.T) {
			s := &lateSigner{Signer: newFake(t), delay: 3 * time.Second}
			s.TTL = 10 * time.Second
			m, stop := run(t, svid.Config{Signer: s})
			defer stop()
			for k := range n {
				m.Acquire(svid.Pod{UID: fmt.Sprint(k)}, sa(fmt.Sprint(k)))
			}
			time.Sleep(20 * time.Second)
			for range 3000 {
				time.Sleep(100 * time.Millisecond)
				for _, state := range m.Dump() {
					if i := state.Identity; i == nil || time.Until(i.NotAfter()) < 500*time.Millisecond {
						t.Fatalf("%d identities: %s has %v", n, state.ID, i)
					}
				}
			}
		})
	}
}

// A slow CA and a burst of identities that nobody waits for: renewals of certificates in use come first when it is
// time, those of certificates that nobody can use do not.
func TestABurstDoesNotStarveCertificatesInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		s.TTL = 10 * time.Second
		before := s.Before
		s.Before = func(ctx context.Context, id spiffeid.ID) error {
			time.Sleep(300 * time.Millisecond)
			return before(ctx, id)
		}
		m, stop := run(t, svid.Config{Signer: s})
		defer stop()
		mustIdentity(t, m.Acquire(svid.Pod{UID: "pod"}, sa("used")))
		m.Prefetch(sa("unused"), "pod")
		time.Sleep(4 * time.Second)
		for k := range 500 {
			m.Prefetch(sa(fmt.Sprint(k)), fmt.Sprint(k))
		}
		unused := 0
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			for _, state := range m.Dump() {
				switch {
				case state.ID == sa("used") && state.Identity == nil:
					t.Fatal("the certificate in use has run out")
				case state.ID == sa("unused") && state.Identity == nil:
					unused++
				}
			}
		}
		if unused == 0 {
			t.Error("the certificate that nobody can use was renewed before the burst")
		}
	})
}
