package svid_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/internal/netns"
)

// lasting is a Watcher that gives everybody a certificate for weeks, or those that are named.
type lasting struct {
	ca    *fake.Signer
	named []string
	asked *[]svid.Pod
	end   chan error
}

func (w lasting) Watch(ctx context.Context, p svid.Pod, id spiffeid.ID, emit func(svid.Update)) error {
	if w.asked != nil {
		*w.asked = append(*w.asked, p)
	}
	if w.named != nil && !slices.Contains(w.named, p.UID) {
		return errors.New("away")
	}
	emit(svid.Update{SVIDs: []svid.SVID{issue(w.ca, id, 1000*time.Hour)}})
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-w.end:
		return err
	}
}

// A source of before that is trusted no more does not come back with the next change, and an overlap that has begun can be
// cut short, by itself or with the next change.
func TestOldRootsStayAway(t *testing.T) {
	for name, tt := range map[string]struct {
		overlap time.Duration // of the first change
		end     func(m *svid.Manager, next svid.Source) error
	}{
		"no overlap":        {0, func(*svid.Manager, svid.Source) error { return nil }},
		"one that is cut":   {24 * time.Hour, func(m *svid.Manager, _ svid.Source) error { m.Overlap(0); return nil }},
		"cut by the change": {24 * time.Hour, func(m *svid.Manager, next svid.Source) error { return m.Switch(next, time.Minute) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newSigner(t)
				var changes atomic.Int64
				m, stop := run(t, svid.Config{Signer: a, RootsChanged: func() { changes.Add(1) }})
				defer stop()
				l := m.Acquire(pod(0), sa("a"))
				mustIdentity(t, l)
				old := mustParse(t, a.RootsPEM())
				trusted := func() bool { return slices.ContainsFunc(mustIdentity(t, l).Roots(), old.Equal) }
				if err := m.Switch(svid.Source{Watcher: lasting{ca: newFake(t)}}, tt.overlap); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
				if got := trusted(); got != (tt.overlap > 0) {
					t.Fatalf("after the first change: trusted %v", got)
				}
				changes.Store(0)
				if err := tt.end(m, svid.Source{Watcher: lasting{ca: newFake(t)}}); err != nil {
					t.Fatal(err)
				}
				if trusted() || tt.overlap > 0 && changes.Load() == 0 {
					t.Errorf("trusted %v, %d changes told", trusted(), changes.Load())
				}
				m.Overlap(48 * time.Hour) // which is no reason for it to come back
				for range 3 {
					if err := m.Switch(svid.Source{Watcher: lasting{ca: newFake(t)}}, 24*time.Hour); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Minute)
					if trusted() {
						t.Fatal("trusted again after another change")
					}
				}
			})
		})
	}
}

// What the source of before gave a pod is lent to no other.
func TestNothingOfBeforeIsLent(t *testing.T) {
	for _, reuse := range []svid.Reuse{svid.Local, svid.Confirm} {
		t.Run(string(reuse), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, stop := run(t, svid.Config{Watcher: lasting{ca: newFake(t), named: []string{pod(0).UID}}, Wait: time.Second})
				defer stop()
				l := m.Acquire(pod(0), sa("a"))
				own := mustIdentity(t, l)
				next := newAgent(t)
				next.deaf[pod(0).UID], next.deaf[pod(1).UID] = true, true
				if err := m.Switch(svid.Source{Watcher: next, Prover: next, Reuse: reuse, Sample: -1}, time.Hour); err != nil {
					t.Fatal(err)
				}
				other := m.Acquire(pod(1), sa("a"))
				for range 60 {
					time.Sleep(5 * time.Second)
					if i := other.Current(); i != nil {
						t.Fatalf("lent is %v", i)
					}
				}
				if i := l.Current(); i == nil || !i.Chain()[0].Equal(own.Chain()[0]) {
					t.Errorf("its own has become %v", i)
				}
				next.mu.Lock()
				clear(next.deaf)
				next.mu.Unlock()
				next.give(pod(0).UID, sa("a"))
				next.give(pod(1).UID, sa("a"))
				time.Sleep(2 * time.Minute)
				mustIdentity(t, other)
			})
		})
	}
}

// A pod that is made anew under its UID, in another network namespace, is another one: it uses nothing of the old one's and is
// asked for as it is now. The old one's lease has ended, whenever it is given back.
func TestAnotherNamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []svid.Pod
		w := lasting{ca: newFake(t), asked: &asked, end: make(chan error)}
		m, stop := run(t, svid.Config{Watcher: w})
		defer stop()
		p := pod(0)
		p.Netns = netns.ID{Ino: 1}
		l := m.Acquire(p, sa("a"))
		mustIdentity(t, l)
		again := m.Acquire(p, sa("a"))
		if again.Current() == nil || l.Err() != nil {
			t.Fatal("the same pod is taken for another")
		}
		p.Netns.Ino = 2
		next := m.Acquire(p, sa("a"))
		if next.Current() != nil {
			t.Error("it uses what the old one was given")
		}
		if !errors.Is(l.Err(), svid.ErrNotNeeded) || !errors.Is(again.Err(), svid.ErrNotNeeded) {
			t.Errorf("the old leases: %v, %v", l.Err(), again.Err())
		}
		mustIdentity(t, next)
		l.Release()
		again.Release()
		w.end <- svid.ErrProcessEnded
		time.Sleep(2 * time.Minute)
		mustIdentity(t, next)
		for n, p := range asked {
			if want := uint64(min(n+1, 2)); p.Netns.Ino != want {
				t.Errorf("asked for namespace %d, want %d", p.Netns.Ino, want)
			}
		}
		if len(asked) < 3 || len(m.Dump()) != 1 {
			t.Errorf("asked %d times, %d entries", len(asked), len(m.Dump()))
		}
		// The same between a change to a Signer and its first answer.
		hold := newSigner(t)
		hold.hold = make(chan struct{})
		if err := m.Switch(svid.Source{Signer: hold}, 0); err != nil {
			t.Fatal(err)
		}
		p.Netns.Ino = 3
		last := m.Acquire(p, sa("a"))
		if last.Current() != nil || next.Err() == nil {
			t.Error("it uses what the old one was given, until the Signer answers")
		}
		close(hold.hold)
		mustIdentity(t, last)
	})
}

// Of two certificates for one identity the good one is used, of two good ones that which lasts longer.
func TestTwoOfOneID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, s := newLiar(t), newScript()
		m, stop := run(t, svid.Config{Watcher: s})
		defer stop()
		l := m.Acquire(pod(0), sa("a"))
		ended := made(t, a)
		time.Sleep(20 * time.Minute)
		short := made(t, a)
		time.Sleep(31 * time.Minute)
		long := made(t, a)
		for name, all := range map[string][]svid.SVID{
			"ended first": {ended, long}, "ended last": {long, ended}, "short first": {short, long}, "long first": {long, short}, "all": {ended, short, long},
		} {
			s.say(svid.Update{SVIDs: []svid.SVID{short}})
			s.say(svid.Update{SVIDs: all})
			if i := l.Current(); i == nil || !i.Chain()[0].Equal(long.Chain[0]) {
				t.Errorf("%s: in use is %v", name, i)
			}
		}
		early := made(t, a)
		a.lie(ahead(time.Minute))
		var err error
		if early.Chain[0], err = a.leaf(sa("a"), early.Key.Public()); err != nil {
			t.Fatal(err)
		}
		s.say(svid.Update{SVIDs: []svid.SVID{early, short}})
		if i := l.Current(); i == nil || !i.Chain()[0].Equal(short.Chain[0]) {
			t.Errorf("in use is %v", i)
		}
	})
}

// refusing is a Signer that signs for some identities only.
type refusing struct {
	svid.Signer
	named []spiffeid.ID
}

func (r refusing) Sign(ctx context.Context, id spiffeid.ID, csr []byte, ttl time.Duration) ([]string, error) {
	if !slices.Contains(r.named, id) {
		return nil, errors.New("refused")
	}
	return r.Signer.Sign(ctx, id, csr, ttl)
}

// A pod that the new source never serves keeps no root of the old one trusted by others, nor has it come back, whatever
// sources follow.
func TestOldRootsStayAwayFromPodsThatAreNotServed(t *testing.T) {
	watcher := func(t *testing.T) svid.Source {
		return svid.Source{Watcher: lasting{ca: newFake(t), named: []string{pod(0).UID}}}
	}
	signer := func(t *testing.T) svid.Source {
		return svid.Source{Signer: refusing{newSigner(t), []spiffeid.ID{sa("a")}}}
	}
	for name, next := range map[string][]func(t *testing.T) svid.Source{
		"Watcher, Watcher": {watcher, watcher},
		"Signer, Signer":   {signer, signer},
		"Watcher, Signer":  {watcher, signer},
		"Signer, Watcher":  {signer, watcher},
	} {
		for _, pause := range []time.Duration{time.Minute, 2 * time.Hour} { // the other pod's certificate lasts, or has ended
			t.Run(name+" after "+pause.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newSigner(t)
					m, stop := run(t, svid.Config{Signer: a, TTL: time.Hour})
					defer stop()
					l, other := m.Acquire(pod(0), sa("a")), m.Acquire(pod(1), sa("b"))
					mustIdentity(t, l)
					mustIdentity(t, other)
					old := mustParse(t, a.RootsPEM())
					trusted := func() bool { return slices.ContainsFunc(mustIdentity(t, l).Roots(), old.Equal) }
					for n, overlap := range []time.Duration{0, 24 * time.Hour} {
						if err := m.Switch(next[n](t), overlap); err != nil {
							t.Fatal(err)
						}
						time.Sleep(time.Minute)
						if trusted() {
							t.Fatalf("the old root is trusted by a pod that the new source serves, after change %d", n+1)
						}
						if i := other.Held(); i == nil || !slices.ContainsFunc(i.Roots(), old.Equal) {
							t.Errorf("what is in use trusts %v after change %d", i, n+1)
						}
						time.Sleep(pause)
					}
				})
			})
		}
	}
}

// An identity that its CA refuses keeps a root that the CA has changed trusted as long as its certificate lasts, and trusts
// the new one meanwhile.
func TestARootEndsWithItsLastCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := newFake(t), newFake(t)
		var moved atomic.Bool
		var changes atomic.Int64
		m, stop := run(t, svid.Config{TTL: time.Hour, RootsChanged: func() { changes.Add(1) }, Signer: signFunc(func(ctx context.Context, id spiffeid.ID, csr []byte, ttl time.Duration) ([]string, error) {
			switch {
			case !moved.Load():
				return before.Sign(ctx, id, csr, ttl)
			case id == sa("b"):
				return nil, errors.New("refused")
			}
			return after.Sign(ctx, id, csr, ttl)
		})})
		defer stop()
		l, other := m.Acquire(pod(0), sa("a")), m.Acquire(pod(1), sa("b"))
		end := mustIdentity(t, other).NotAfter()
		mustIdentity(t, l)
		moved.Store(true)
		time.Sleep(time.Until(end) - time.Second)
		if i, j := mustIdentity(t, l), mustIdentity(t, other); len(i.Roots()) != 2 || len(j.Roots()) != 2 {
			t.Fatalf("%d and %d roots are trusted while both are in use", len(i.Roots()), len(j.Roots()))
		}
		changes.Store(0)
		time.Sleep(time.Minute)
		root := mustParse(t, after.RootsPEM())
		for n, i := range []*mtls.Identity{mustIdentity(t, l), other.Held()} {
			if got := i.Roots(); len(got) != 1 || !got[0].Equal(root) {
				t.Errorf("%d: %d roots are trusted", n, len(got))
			}
		}
		if changes.Load() == 0 {
			t.Error("nobody was told")
		}
	})
}
