package svid_test

import (
	"context"
	"crypto/x509"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/svid"
)

// script is a Watcher that says what a test has it say, to one pod.
type script struct {
	words chan svid.Update
	proof chan struct{} // of all pods, holds until closed
}

func newScript() script { return script{make(chan svid.Update), make(chan struct{})} }

func (s script) Watch(ctx context.Context, _ svid.Pod, _ spiffeid.ID, emit func(svid.Update)) error {
	for {
		select {
		case u := <-s.words:
			emit(u)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s script) Prove(context.Context, svid.Pod) (svid.Proof, <-chan struct{}, error) {
	return svid.Proof{PID: 1}, s.proof, nil
}

func (s script) say(u svid.Update) {
	s.words <- u
	synctest.Wait()
}

// made is an SVID of a CA for fifty minutes, with the roots that the bundle has beside its own.
func made(t *testing.T, ca *liar, roots ...*x509.Certificate) svid.SVID {
	t.Helper()
	ca.lie(func(c *x509.Certificate, _ *any) { c.NotAfter = time.Now().Add(50 * time.Minute) })
	key := newKey(t)
	c, err := ca.leaf(sa("a"), &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return svid.SVID{ID: sa("a"), Key: key, Chain: []*x509.Certificate{c}, Roots: append(roots, ca.root)}
}

func under(s svid.SVID, roots ...*x509.Certificate) svid.Update {
	s.Roots = roots
	return svid.Update{SVIDs: []svid.SVID{s}}
}

// accepts reports whether the pod lets in somebody else whose certificate is of ca.
func accepts(t *testing.T, l *svid.Lease, ca *liar) bool {
	t.Helper()
	i := l.Current()
	if i == nil {
		return false
	}
	_, err := i.VerifyPeer(made(t, ca).Chain, x509.ExtKeyUsageClientAuth, time.Now())
	return err == nil
}

// A root that goes from the bundle is not trusted from then on, also by certificates that hang from it; those have thirty
// seconds to be replaced.
func TestTheRootOfOnesOwnGoes(t *testing.T) {
	for name, left := range map[string]func(b *liar) []*x509.Certificate{
		"one of two":       func(b *liar) []*x509.Certificate { return []*x509.Certificate{b.root} },
		"the whole bundle": func(*liar) []*x509.Certificate { return nil },
	} {
		for again, replaced := range map[string]bool{"replaced": true, "not replaced": false} {
			t.Run(name+", "+again, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, b, s, k := newLiar(t), newLiar(t), newScript(), &taken{}
					changes := 0
					m, stop := run(t, svid.Config{Watcher: s, RootsChanged: func() { changes++ }, Withdrawn: k.withdrawn})
					defer stop()
					l := m.Acquire(pod(0), sa("a"))
					own := made(t, a, b.root)
					s.say(svid.Update{SVIDs: []svid.SVID{own}})
					if !accepts(t, l, a) || !accepts(t, l, b) {
						t.Fatal("both are trusted at first")
					}
					s.say(under(own, left(b)...))
					if accepts(t, l, a) || changes == 0 {
						t.Errorf("the root that went is trusted, %d changes told", changes)
					}
					if accepts(t, l, b) != (len(left(b)) > 0) {
						t.Errorf("the other root: trusted %v", accepts(t, l, b))
					}
					time.Sleep(25 * time.Second)
					if l.Current() == nil {
						t.Error("its own was taken back before the new one could come")
					}
					s.say(under(own, left(b)...)) // gives no more time
					if replaced {
						s.say(svid.Update{SVIDs: []svid.SVID{made(t, b)}})
					}
					time.Sleep(6 * time.Second)
					if (l.Current() != nil) != replaced || (k.why(pod(0).UID) == nil) != replaced {
						t.Errorf("after thirty seconds: %v, taken back because of %v", l.Current(), k.why(pod(0).UID))
					}
					s.say(under(own, left(b)...))
					if !replaced && l.Current() != nil {
						t.Errorf("came back as %v", l.Current())
					}
					s.say(svid.Update{SVIDs: []svid.SVID{made(t, b)}})
					time.Sleep(time.Minute)
					if !accepts(t, l, b) || accepts(t, l, a) {
						t.Error("a new certificate does not mend it")
					}
				})
			})
		}
	}
}

// Whom to trust is taken from messages whose certificates are no good, and of a bundle that cannot be used it is not.
func TestTrustComesWithBadCertificates(t *testing.T) {
	partner := spiffeid.RequireTrustDomainFromString("partner.test")
	for name, tt := range map[string]struct {
		spoil func(u *svid.Update, other svid.SVID)
		told  bool
	}{
		"another key": {func(u *svid.Update, o svid.SVID) { u.SVIDs[0].Key = o.Key }, true},
		"ended": {func(u *svid.Update, o svid.SVID) {
			time.Sleep(time.Until(o.Chain[0].NotAfter) + time.Second)
			u.SVIDs[0].Chain, u.SVIDs[0].Key = o.Chain, o.Key
		}, true},
		"not yet valid": {func(u *svid.Update, o svid.SVID) {}, true},
		"unread": {func(u *svid.Update, o svid.SVID) {
			u.SVIDs[0].Key, u.Refused = o.Key, map[string]error{td.Name(): errors.New("malformed")}
		}, false},
		"no CA in it": {func(u *svid.Update, o svid.SVID) { u.SVIDs[0].Roots = append(u.SVIDs[0].Roots, o.Chain[0]) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, s := newLiar(t), newLiar(t), newScript()
				m, stop := run(t, svid.Config{Watcher: s})
				defer stop()
				l := m.Acquire(pod(0), sa("a"))
				short := made(t, a)
				time.Sleep(25 * time.Minute)
				own := made(t, a, b.root)
				u := svid.Update{SVIDs: []svid.SVID{own}, Federated: map[spiffeid.TrustDomain][]*x509.Certificate{partner: {b.root}}}
				s.say(u)
				u = under(own, a.root)
				tt.spoil(&u, short)
				if name == "not yet valid" {
					late := made(t, a)
					a.lie(ahead(time.Minute))
					c, err := a.leaf(sa("a"), late.Key.Public())
					if err != nil {
						t.Fatal(err)
					}
					late.Chain[0] = c
					u = under(late, a.root)
				}
				s.say(u)
				if got := accepts(t, l, b); got == tt.told {
					t.Errorf("the root that went is trusted: %v", got)
				}
				if got := len(l.Current().Federated()); (got == 0) != tt.told {
					t.Errorf("%d partners", got)
				}
				time.Sleep(50 * time.Second)
				if i := l.Current(); i == nil || !i.Chain()[0].Equal(own.Chain[0]) || !accepts(t, l, a) {
					t.Errorf("in use is %v", i)
				}
			})
		})
	}
}

// At local, what one pod's stream says of roots is so for all that follow it, and for those that come while its certificate
// is on notice.
func TestTheRootOfAnAnchorGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, s, k := newLiar(t), newLiar(t), newScript(), &taken{}
		m, stop := run(t, svid.Config{Watcher: s, Prover: s, Reuse: svid.Local, Sample: -1, Withdrawn: k.withdrawn})
		defer stop()
		leases := []*svid.Lease{m.Acquire(pod(0), sa("a"))}
		own := made(t, a, b.root)
		s.say(svid.Update{SVIDs: []svid.SVID{own}})
		leases = append(leases, m.Acquire(pod(1), sa("a")))
		synctest.Wait()
		s.say(under(own, b.root))
		leases = append(leases, m.Acquire(pod(2), sa("a")))
		synctest.Wait()
		for n, l := range leases {
			if l.Current() == nil || accepts(t, l, a) {
				t.Errorf("pod %d has %v, trusts the old root: %v", n, l.Current(), accepts(t, l, a))
			}
		}
		time.Sleep(31 * time.Second)
		for n, l := range leases {
			if l.Current() != nil || k.why(pod(n).UID) == nil {
				t.Errorf("pod %d still has %v", n, l.Current())
			}
		}
	})
}

// A new source that gives nothing good takes nothing back, whatever its roots.
func TestTheNewSourceHasOtherRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, s, next := newLiar(t), newLiar(t), newScript(), newScript()
		m, stop := run(t, svid.Config{Watcher: s})
		defer stop()
		l := m.Acquire(pod(0), sa("a"))
		s.say(svid.Update{SVIDs: []svid.SVID{made(t, a)}})
		if err := m.Switch(svid.Source{Watcher: next}, 0); err != nil {
			t.Fatal(err)
		}
		bad := made(t, b)
		bad.Key = newKey(t)
		next.say(svid.Update{SVIDs: []svid.SVID{bad}})
		if accepts(t, l, a) || !accepts(t, l, b) {
			t.Error("peers are judged by the roots of before")
		}
		time.Sleep(10 * time.Minute)
		if l.Current() == nil {
			t.Error("taken back before the new source has given anything")
		}
	})
}
