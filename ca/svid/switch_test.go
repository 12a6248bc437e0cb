package svid_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/svid"
)

// From any kind of source to any other: nobody is ever without a certificate, all have the new source's soon, the old
// roots are trusted for the overlap and not longer.
func TestSwitch(t *testing.T) {
	kinds := map[string]func(a *agent) svid.Source{
		"signer":  func(a *agent) svid.Source { return svid.Source{Signer: a.ca} },
		"watcher": func(a *agent) svid.Source { return svid.Source{Watcher: a} },
		"local":   func(a *agent) svid.Source { return svid.Source{Watcher: a, Prover: a, Reuse: svid.Local} },
	}
	for from, one := range kinds {
		for to, other := range kinds {
			t.Run(from+" to "+to, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, b, k := newAgent(t), newAgent(t), &taken{}
					src := one(a)
					m, stop := run(t, svid.Config{Signer: src.Signer, Watcher: src.Watcher, Prover: src.Prover, Reuse: src.Reuse,
						TTL: time.Hour, Withdrawn: k.withdrawn})
					defer stop()
					var leases []*svid.Lease
					for n := range 20 {
						id := sa(fmt.Sprint(n % 5))
						a.give(pod(n).UID, id)
						b.give(pod(n).UID, id)
						leases = append(leases, m.Acquire(pod(n), id))
					}
					m.Prefetch(sa("ahead"), "w")
					time.Sleep(5 * time.Second)
					if err := m.Switch(other(b), time.Hour); err != nil {
						t.Fatal(err)
					}
					rootsB := mustParse(t, b.ca.RootsPEM())
					for range 300 {
						for n, l := range leases {
							if l.Current() == nil {
								t.Fatalf("pod %d has no certificate", n)
							}
						}
						time.Sleep(100 * time.Millisecond)
					}
					for n, l := range leases {
						i := mustIdentity(t, l)
						if err := i.Chain()[0].CheckSignatureFrom(rootsB); err != nil {
							t.Fatalf("pod %d: %v", n, err)
						}
						if got := len(i.Roots()); got != 2 {
							t.Fatalf("pod %d trusts %d roots", n, got)
						}
					}
					time.Sleep(time.Hour)
					for n, l := range leases {
						if got := mustIdentity(t, l).Roots(); len(got) != 1 || !got[0].Equal(rootsB) {
							t.Fatalf("pod %d trusts %d roots after the overlap", n, len(got))
						}
					}
					if len(k.pods) > 0 {
						t.Errorf("taken back: %v", k.pods)
					}
					m.Forget("w")
					for n := range leases {
						m.Forget(pod(n).UID)
					}
					if left := m.Dump(); len(left) > 0 {
						t.Errorf("%d are left", len(left))
					}
				})
			})
		}
	}
}

func mustParse(t testing.TB, text []byte) *x509.Certificate {
	t.Helper()
	certs, err := mtls.ParsePEM(text, 1)
	if err != nil {
		t.Fatal(err)
	}
	return certs[0]
}

// Two nodes change their source one after the other, with the new root trusted on both before: at every step each
// accepts the other.
func TestNodesSwitchOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newFake(t), newFake(t)
		var nodes []*svid.Manager
		var leases []*svid.Lease
		for n := range 2 {
			m, stop := run(t, svid.Config{Signer: a, TTL: time.Hour})
			defer stop()
			nodes = append(nodes, m)
			leases = append(leases, m.Acquire(pod(n), sa(fmt.Sprint(n))))
			mustIdentity(t, leases[n])
		}
		check := func(step string) {
			t.Helper()
			for n := range 2 {
				c, s := leases[n], leases[1-n]
				if err := shake(mtls.Client(mustIdentity(t, c), []spiffeid.ID{s.ID()}), mtls.Server(s.Identity)); err != nil {
					t.Fatalf("%s: %d to %d: %v", step, n, 1-n, err)
				}
			}
		}
		check("before")
		for _, m := range nodes {
			m.Trust(map[spiffeid.TrustDomain][]*x509.Certificate{td: {mustParse(t, b.RootsPEM())}})
		}
		check("with both roots")
		for n, m := range nodes {
			if err := m.Switch(svid.Source{Signer: b}, 3*time.Hour); err != nil {
				t.Fatal(err)
			}
			check("at once")
			time.Sleep(time.Minute)
			check(fmt.Sprint("node ", n, " has changed"))
		}
		for _, m := range nodes {
			m.Trust(nil)
		}
		time.Sleep(4 * time.Hour)
		check("after")
		if got := len(mustIdentity(t, leases[0]).Roots()); got != 1 {
			t.Errorf("%d roots at the end", got)
		}
	})
}

// A change while calls are under way, and one to a source that does not work: what is in use stays, and a change back
// mends it.
func TestSwitchToASourceThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, slow := newSigner(t), newSigner(t)
		slow.hold = make(chan struct{})
		m, stop := run(t, svid.Config{Signer: slow, TTL: time.Hour})
		defer stop()
		l := m.Acquire(pod(0), sa("a"))
		synctest.Wait() // the call hangs
		if err := m.Switch(svid.Source{Signer: good.Signer}, 0); err != nil {
			t.Fatal(err)
		}
		i := mustIdentity(t, l)
		var asked atomic.Int64
		bad := signFunc(func(context.Context, spiffeid.ID, []byte, time.Duration) ([]string, error) {
			asked.Add(1)
			return nil, errors.New("no")
		})
		if err := m.Switch(svid.Source{Signer: bad}, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		if l.Current() != i && l.Current().NotAfter() != i.NotAfter() || asked.Load() == 0 {
			t.Errorf("the certificate is %v, asked %d times", l.Current(), asked.Load())
		}
		if err := m.Switch(svid.Source{Signer: good.Signer}, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := mustIdentity(t, l); got.NotAfter() == i.NotAfter() {
			t.Error("it was not renewed after the change back")
		}
	})
}

// What a call to the old source still brings is not used, however late it comes and whatever it thinks of its context.
func TestLateAnswerOfTheOldSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := newFake(t), newFake(t)
		release := make(chan struct{})
		old.Before = func(context.Context, spiffeid.ID) error { <-release; return nil }
		m, stop := run(t, svid.Config{Signer: old, TTL: time.Hour})
		defer stop()
		l := m.Acquire(pod(0), sa("a"))
		synctest.Wait() // the call hangs
		if err := m.Switch(svid.Source{Signer: next}, 0); err != nil {
			t.Fatal(err)
		}
		close(release)
		time.Sleep(time.Minute)
		if err := mustIdentity(t, l).Chain()[0].CheckSignatureFrom(mustParse(t, next.RootsPEM())); err != nil {
			t.Errorf("the old source's certificate is in use: %v", err)
		}
	})
}
