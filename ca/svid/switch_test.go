package svid_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/fake"
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
					var leases []*svid.Lease
					var during atomic.Bool // of the overlap
					rootsA := mustParse(t, a.ca.RootsPEM())
					m, stop := run(t, svid.Config{Signer: src.Signer, Watcher: src.Watcher, Prover: src.Prover, Reuse: src.Reuse,
						TTL: time.Hour, Withdrawn: k.withdrawn, RootsChanged: func() {
							if !during.Load() {
								return
							}
							for n, l := range leases {
								if !slices.ContainsFunc(l.Current().Roots(), rootsA.Equal) {
									t.Errorf("pod %d does not trust the old roots for a moment, in which peers are judged", n)
								}
							}
						}})
					defer stop()
					for n := range 20 {
						id := sa(fmt.Sprint(n % 5))
						a.give(pod(n).UID, id)
						b.give(pod(n).UID, id)
						leases = append(leases, m.Acquire(pod(n), id))
					}
					m.Prefetch(sa("ahead"), "w")
					time.Sleep(5 * time.Second)
					during.Store(true)
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
					during.Store(false)
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

// oneEach is a Watcher that gives each pod that is entitled a key of its own.
type oneEach struct {
	ca  *fake.Signer
	ids map[string]spiffeid.ID // by pod
}

func (o oneEach) Watch(ctx context.Context, pod svid.Pod, _ spiffeid.ID, emit func(svid.Update)) error {
	var u svid.Update
	if id, ok := o.ids[pod.UID]; ok {
		u.SVIDs = []svid.SVID{issue(o.ca, id, time.Hour)}
	}
	emit(u)
	<-ctx.Done()
	return ctx.Err()
}

// From a Watcher to a Signer: until that has answered, a pod uses what it was given itself, and one that was refused
// nothing.
func TestSwitchInheritsOnlyOnesOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := newSigner(t)
		next.hold = make(chan struct{})
		w := oneEach{newFake(t), map[string]spiffeid.ID{pod(0).UID: sa("a"), pod(2).UID: sa("a")}}
		k := &taken{}
		m, stop := run(t, svid.Config{Watcher: w, Wait: time.Second, CallTimeout: time.Hour, Withdrawn: k.withdrawn})
		defer stop()
		var leases []*svid.Lease
		for n := range 3 {
			leases = append(leases, m.Acquire(pod(n), sa("a")))
		}
		synctest.Wait()
		own := []*mtls.Identity{leases[0].Current(), nil, leases[2].Current()}
		if leases[1].Current() != nil || own[0] == own[2] {
			t.Fatal("the old source did not tell the pods apart")
		}
		if err := m.Switch(svid.Source{Signer: next}, time.Hour); err != nil {
			t.Fatal(err)
		}
		// A new pod, and a second lease of an old one.
		leases = append(leases, m.Acquire(pod(3), sa("a")), m.Acquire(pod(0), sa("a")))
		own = append(own, nil, own[0])
		m.Prefetch(sa("a"), "w")
		check := func(when string) {
			t.Helper()
			for n, l := range leases {
				switch got := l.Current(); {
				case got == nil && own[n] == nil:
				case got == nil || own[n] == nil || !got.Chain()[0].Equal(own[n].Chain()[0]):
					t.Errorf("%s: lease %d has %v, its own was %v", when, n, got, own[n])
				}
			}
		}
		check("at once")
		if i, err := leases[1].Identity(t.Context()); err == nil {
			t.Errorf("the pod that was refused waited, and got %v", i)
		}
		check("while the call hangs")
		if got := next.calls(); len(got) != 1 {
			t.Errorf("%d calls for one identity", len(got))
		}
		// To another one before that has answered, and one that fails first.
		bad := newSigner(t)
		bad.fail(errors.New("no"))
		if err := m.Switch(svid.Source{Signer: bad}, time.Hour); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		check("after refusals")
		// Back, before anybody has answered, and again.
		if err := m.Switch(svid.Source{Watcher: w}, time.Hour); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		for n, l := range leases {
			if own[n] != nil {
				own[n] = mustIdentity(t, l)
			}
		}
		check("back")
		if err := m.Switch(svid.Source{Signer: bad}, time.Hour); err != nil {
			t.Fatal(err)
		}
		check("again")
		m.Prefetch(sa("a"), "w")
		bad.fail(nil)
		time.Sleep(2 * time.Minute)
		for n, l := range leases {
			if err := mustIdentity(t, l).Chain()[0].CheckSignatureFrom(mustParse(t, bad.RootsPEM())); err != nil {
				t.Errorf("lease %d: %v", n, err)
			}
		}
		if all := m.Dump(); len(all) != 1 || all[0].Holder != "" || len(all[0].Holders) != 5 {
			t.Errorf("left is %+v", all)
		}
		if len(k.pods) > 0 {
			t.Errorf("taken back: %v", k.pods)
		}
		m.Forget("w")
		for n := range 4 {
			m.Forget(pod(n).UID)
		}
		if left := m.Dump(); len(left) > 0 {
			t.Errorf("%d are left", len(left))
		}
	})
}

// Those that wait for the answer to another one's call get it though that one goes away, and are one entry then. What
// was asked for since the first of two changes is among them.
func TestSwitchWaitsForOneCall(t *testing.T) {
	for range 40 { // maps are walked in any order
		synctest.Test(t, func(t *testing.T) {
			refusing, next := newSigner(t), newSigner(t)
			refusing.fail(errors.New("no"))
			next.hold = make(chan struct{})
			w := oneEach{newFake(t), map[string]spiffeid.ID{pod(0).UID: sa("a")}}
			m, stop := run(t, svid.Config{Watcher: w, CallTimeout: time.Hour})
			defer stop()
			leases := map[string]*svid.Lease{}
			add := func(n int) { leases[pod(n).UID] = m.Acquire(pod(n), sa("a")) }
			add(0)
			add(1)
			synctest.Wait()
			if err := m.Switch(svid.Source{Signer: refusing}, 0); err != nil {
				t.Fatal(err)
			}
			add(2)
			time.Sleep(10 * time.Second) // all are refused, and rest
			if err := m.Switch(svid.Source{Signer: next}, 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			for _, s := range m.Dump() {
				if s.InFlight {
					m.Forget(s.Holders[0])
					delete(leases, s.Holders[0])
				}
			}
			close(next.hold)
			time.Sleep(time.Minute)
			for uid, l := range leases {
				if i := l.Current(); i == nil || i.Chain()[0].CheckSignatureFrom(mustParse(t, next.RootsPEM())) != nil {
					t.Errorf("%s has %v", uid, i)
				}
			}
			calls := len(next.calls())
			add(3)
			if all := m.Dump(); len(leases) != 3 || len(all) != 1 || all[0].Holder != "" || len(next.calls()) != calls {
				t.Errorf("%d calls, left is %+v", len(next.calls())-calls, all)
			}
		})
	}
}
