package svid_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/svid"
)

// An agent that takes calls and answers none is found out, is left alone but for a call now and then, and is used again as
// soon as it answers.
func TestASilentSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		m, stop := run(t, svid.Config{Watcher: a})
		defer stop()
		for n := range 20 {
			a.give(pod(n).UID, sa("a"))
			m.Acquire(pod(n), sa("a"))
		}
		time.Sleep(time.Second)
		if !m.Health().Silent.IsZero() {
			t.Error("silent from the start")
		}
		deaf := func(is bool) {
			a.mu.Lock()
			defer a.mu.Unlock()
			for n := range 40 {
				a.deaf[pod(n).UID] = is
			}
		}
		deaf(true)
		leases := make([]*svid.Lease, 0, 20)
		for n := range 20 {
			a.give(pod(20+n).UID, sa("b"))
			leases = append(leases, m.Acquire(pod(20+n), sa("b")))
		}
		time.Sleep(5 * time.Minute) // each was asked for once
		since := m.Health().Silent
		if since.IsZero() {
			t.Fatal("nobody noticed")
		}
		before := len(a.calls())
		time.Sleep(10 * time.Minute)
		if n := len(a.calls()) - before; n < 5 || n > 20 { // each takes forty seconds
			t.Errorf("%d calls in ten minutes to a source that answers none", n)
		}
		if m.Health().Silent != since {
			t.Error("it did not stay silent")
		}
		for n := range 20 {
			if mustIdentity(t, m.Acquire(pod(n), sa("a"))) == nil {
				t.Error("what is in use was touched")
			}
		}
		deaf(false)
		time.Sleep(2 * time.Minute)
		if !m.Health().Silent.IsZero() {
			t.Error("still said to be silent")
		}
		for _, l := range leases {
			if l.Current() == nil {
				t.Fatal("a pod has no certificate though the source answers")
			}
		}
	})
}

// Errors are answers, and one pod for which there is none is not all of them.
func TestWhatIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		m, stop := run(t, svid.Config{Watcher: a})
		defer stop()
		for n := range 4 {
			a.give(pod(n).UID, sa("a"))
			m.Acquire(pod(n), sa("a"))
		}
		a.mu.Lock()
		a.deaf[pod(9).UID] = true
		a.mu.Unlock()
		m.Acquire(pod(9), sa("a"))
		time.Sleep(30 * time.Minute)
		if n := len(slices.DeleteFunc(a.calls(), func(uid string) bool { return uid != pod(9).UID })); n < 5 {
			t.Fatalf("%d calls for the pod that gets no answer", n)
		}
		if !m.Health().Silent.IsZero() {
			t.Error("one pod made the source silent")
		}
	})
}

// SPIRE answers nothing about pods one of whose entries cannot be signed. Three of those are not silence while others are
// spoken to, and hold up nobody who failed for another reason.
func TestThreeMutePods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		m, stop := run(t, svid.Config{Watcher: a})
		defer stop()
		for n := range 20 {
			a.give(pod(n).UID, sa("a"))
			m.Acquire(pod(n), sa("a"))
		}
		a.mu.Lock()
		for n := range 3 {
			a.deaf[pod(100+n).UID] = true
		}
		a.mu.Unlock()
		for n := range 3 {
			m.Acquire(pod(100+n), sa("b"))
		}
		silent := time.Duration(0)
		for n := range 60 {
			if n%2 == 0 {
				a.rotate(sa("a")) // on all streams
			}
			late := pod(200 + n)
			a.end(late.UID, errors.New("the entry has not come yet"))
			l := m.Acquire(late, sa("c"))
			time.Sleep(5 * time.Second)
			a.mu.Lock()
			clear(a.ends)
			a.mu.Unlock()
			a.give(late.UID, sa("c"))
			start := time.Now()
			mustIdentity(t, l)
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("a pod whose entry came late waited %s", took)
			}
			if !m.Health().Silent.IsZero() {
				silent += 5 * time.Second
			}
		}
		if silent > 40*time.Second { // until the first answer, at most
			t.Errorf("said to be silent for %s", silent)
		}
	})
}

// A pod whose processes end all the time does not have the source attest it all the time.
func TestAPodsOwnPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		m, stop := run(t, svid.Config{Watcher: a})
		defer stop()
		a.give(pod(0).UID, sa("a"))
		a.give(pod(1).UID, sa("a"))
		l := m.Acquire(pod(0), sa("a"))
		mustIdentity(t, l)
		for range 1000 {
			a.end(pod(0).UID, svid.ErrProcessEnded)
			synctest.Wait()
			a.mu.Lock()
			clear(a.ends)
			a.mu.Unlock()
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(a.calls()); n > 105 || n < 50 {
			t.Errorf("%d attestations in 100 seconds", n)
		}
		start := time.Now()
		mustIdentity(t, m.Acquire(pod(1), sa("a"))) // it is nobody else's
		if took := time.Since(start); took > time.Second {
			t.Errorf("another pod waited %s", took)
		}
	})
}

// Renewals that fail are told of long before anything ends, also those of a source that says nothing at all; what one pod is
// refused is not.
func TestOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		s.TTL = 24 * time.Hour
		m, stop := run(t, svid.Config{Signer: s})
		defer stop()
		mustIdentity(t, m.Acquire(pod(0), sa("a")))
		time.Sleep(time.Hour)
		if h := m.Health(); h != (svid.Health{}) {
			t.Errorf("%+v while all is well", h)
		}
		s.fail(errors.New("the CA is away"))
		m.Acquire(pod(1), sa("b")) // never had one
		time.Sleep(time.Minute)
		if h := m.Health(); h.Overdue != 0 {
			t.Errorf("%+v before anything is due", h)
		}
		time.Sleep(13*time.Hour + 15*time.Minute)
		h := m.Health()
		if left := time.Until(h.Ends); h.Overdue != 1 || h.Err == nil || left < 9*time.Hour || left > 11*time.Hour {
			t.Errorf("%+v, %s left", h, left)
		}
		s.fail(nil)
		time.Sleep(5 * time.Minute)
		if h := m.Health(); h.Overdue != 0 {
			t.Errorf("%+v after the CA is back", h)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		m, stop := run(t, svid.Config{Watcher: a})
		defer stop()
		a.give(pod(0).UID, sa("a"))
		mustIdentity(t, m.Acquire(pod(0), sa("a")))
		time.Sleep(time.Minute)
		a.mu.Lock()
		a.deaf[pod(0).UID] = true
		a.mu.Unlock()
		a.end(pod(0).UID, errors.New("the agent ends its streams, and answers none"))
		for begin := time.Now(); m.Health().Overdue == 0; {
			time.Sleep(10 * time.Second)
			if time.Since(begin) > 2*time.Hour {
				t.Fatal("nobody is told")
			}
			if m.Dump()[0].Identity == nil {
				t.Fatal("it ended before anybody was told")
			}
		}
	})
}

// A source that goes on giving what it gave, as SPIRE's agent does while its server is away, renews nothing, however often it
// is asked.
func TestOverdueOnARepeatedCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newLiar(t)
		w := &repeating{s: made(t, a)}
		m, stop := run(t, svid.Config{Watcher: w})
		defer stop()
		l := m.Acquire(pod(0), sa("a"))
		mustIdentity(t, l)
		end := l.Current().NotAfter()
		for life := time.Until(end); l.Current() != nil; time.Sleep(time.Second) {
			left := time.Until(end)
			if told := m.Health().Overdue > 0; told != (left < life/4) && (left-life/4).Abs() > 3*time.Second {
				t.Fatalf("told: %v, %s before the end", told, left)
			}
			if left < 10*time.Second {
				break
			}
		}
		w.mu.Lock()
		w.s = made(t, a)
		w.mu.Unlock()
		time.Sleep(9 * time.Second)
		if h := m.Health(); h.Overdue != 0 || w.calls < 3 || w.calls > 100 {
			t.Errorf("%+v after a new one, asked %d times", h, w.calls)
		}
	})
}

// repeating is a Watcher that gives one certificate to each call.
type repeating struct {
	mu    sync.Mutex
	s     svid.SVID
	calls int
}

func (w *repeating) Watch(ctx context.Context, _ svid.Pod, _ spiffeid.ID, emit func(svid.Update)) error {
	w.mu.Lock()
	w.calls++
	u := svid.Update{SVIDs: []svid.SVID{w.s}}
	w.mu.Unlock()
	emit(u)
	<-ctx.Done()
	return ctx.Err()
}

// What wedges in an agent is attestation: streams that are open go on, and are no sign that it answers. Neither is what never
// reached it.
func TestASilentSourceWhoseStreamsSpeak(t *testing.T) {
	for name, local := range map[string]bool{"streams": false, "and failures before it is asked": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAgent(t)
				m, stop := run(t, svid.Config{Watcher: a})
				defer stop()
				for n := range 100 {
					a.give(pod(n).UID, sa("a"))
					m.Acquire(pod(n), sa("a"))
				}
				time.Sleep(time.Second)
				a.mu.Lock()
				for n := range 400 {
					a.deaf[pod(n).UID] = true
				}
				a.mu.Unlock()
				silent := 0
				for n := range 40 {
					if n < 20 {
						m.Acquire(pod(200+n), sa("b"))
					}
					if local {
						a.end(pod(500).UID, fmt.Errorf("no container yet: %w", svid.ErrNotAsked))
						m.Acquire(pod(500), sa("b"))
					}
					time.Sleep(30 * time.Second)
					a.rotate(sa("a"))
					if !m.Health().Silent.IsZero() {
						silent++
					}
				}
				if silent < 30 {
					t.Errorf("known in %d looks of 40", silent)
				}
			})
		})
	}
}

// How far the clocks are apart is told while a certificate waits.
func TestTheClockIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLiar(t)
		m, stop := run(t, svid.Config{Signer: l})
		defer stop()
		l.lie(ahead(time.Minute))
		m.Acquire(pod(0), sa("a"))
		time.Sleep(time.Second)
		if got := m.Health().Ahead.Round(time.Second); got != time.Minute {
			t.Errorf("ahead by %s", got)
		}
	})
}
