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

// quiet is a node of an agent's with so many pods that have their certificates.
func quiet(t *testing.T, pods int) (a *agent, m *svid.Manager, stop func()) {
	t.Helper()
	a = newAgent(t)
	m, stop = run(t, svid.Config{Watcher: a})
	for n := range pods {
		a.give(pod(n).UID, sa("a"))
		mustIdentity(t, m.Acquire(pod(n), sa("a")))
	}
	return a, m, stop
}

// deafen has the agent answer no more calls about pods, or all of them again.
func (a *agent) deafen(is bool, pods ...int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range pods {
		a.deaf[pod(n).UID] = is
	}
}

func (a *agent) callsFor(n int) int {
	return len(slices.DeleteFunc(a.calls(), func(uid string) bool { return uid != pod(n).UID }))
}

// isSilent looks for so long whether the source is said to answer nobody, and stops when it is.
func isSilent(m *svid.Manager, within time.Duration) bool {
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if !m.Health().Silent.IsZero() {
			return true
		}
	}
	return false
}

// Three calls in a row for three pods are silence, and fewer are not; where there are not so many pods, for all that there
// are.
func TestThreeCallsAreSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, m, stop := quiet(t, 10)
		defer stop()
		a.deafen(true, 100, 101, 102)
		m.Acquire(pod(100), sa("b"))
		m.Acquire(pod(101), sa("b"))
		if isSilent(m, 20*time.Minute) {
			t.Error("two pods made the source silent")
		}
		m.Acquire(pod(102), sa("b"))
		if !isSilent(m, time.Minute) { // its first call takes forty seconds
			t.Error("the third call for a third pod did not")
		}
	})
	for pods := 1; pods <= 2; pods++ {
		synctest.Test(t, func(t *testing.T) {
			a, m, stop := quiet(t, 0)
			defer stop()
			a.deafen(true, 0, 1)
			for n := range pods {
				m.Acquire(pod(n), sa("a"))
			}
			if !isSilent(m, 5*time.Minute) {
				t.Fatalf("a source that answers none of %d pods is not silent", pods)
			}
			// Those of two pods go on at the same time: one may have been begun since.
			if n := len(a.calls()); n < 3 || n > 2+pods {
				t.Errorf("silent after %d calls for %d pods", n, pods)
			}
		})
	}
}

// Whom the source has not answered when it answers another is not the source's silence, as long as it does not answer that
// one.
func TestWhoIsMuteAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, m, stop := quiet(t, 10)
		defer stop()
		mute := []int{100, 101, 102}
		a.deafen(true, mute...)
		leases := make([]*svid.Lease, len(mute))
		for n, p := range mute {
			leases[n] = m.Acquire(pod(p), sa("b"))
		}
		if !isSilent(m, 2*time.Minute) {
			t.Fatal("nobody noticed")
		}
		a.give(pod(50).UID, sa("c"))
		mustIdentity(t, m.Acquire(pod(50), sa("c")))
		if !m.Health().Silent.IsZero() {
			t.Error("silent though it answered")
		}
		before := a.callsFor(100)
		if isSilent(m, 20*time.Minute) {
			t.Error("three that are known to be mute made the source silent")
		}
		if n := a.callsFor(100) - before; n < 15 {
			t.Errorf("one of them was asked for %d times in twenty minutes", n)
		}
		for _, p := range mute {
			a.give(pod(p).UID, sa("b"))
		}
		a.deafen(false, mute...)
		for _, l := range leases {
			for end := time.Now().Add(5 * time.Minute); l.Current() == nil; time.Sleep(time.Second) {
				if time.Now().After(end) {
					t.Fatal("it is not asked any more")
				}
			}
		}
		a.deafen(true, mute...)
		a.mu.Lock()
		for _, p := range mute {
			a.ends[pod(p).UID] = errors.New("the agent closed the stream")
		}
		a.tell()
		a.mu.Unlock()
		if !isSilent(m, 10*time.Minute) {
			t.Error("who has been answered since is mute for ever")
		}
	})
}

// Silence ends with any answer, also a refusal, and with nothing else; who fails for another reason is not held up.
func TestWhatEndsSilence(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		ends bool
	}{
		"a refusal":              {errors.New("there is no entry"), true},
		"not entitled":           {svid.ErrNotEntitled, true},
		"not asked":              {fmt.Errorf("no container yet: %w", svid.ErrNotAsked), false},
		"a process that ended":   {fmt.Errorf("before: %w", svid.ErrProcessEnded), false},
		"a source's own timeout": {fmt.Errorf("late: %w", svid.ErrSilent), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, m, stop := quiet(t, 10)
				defer stop()
				a.deafen(true, 100, 101, 102, 103)
				for n := range 4 {
					m.Acquire(pod(100+n), sa("b"))
				}
				if !isSilent(m, 2*time.Minute) {
					t.Fatal("nobody noticed")
				}
				a.end(pod(50).UID, tt.err)
				m.Acquire(pod(50), sa("c"))
				time.Sleep(5 * time.Second)
				if silent := !m.Health().Silent.IsZero(); silent == tt.ends {
					t.Errorf("silent: %v", silent)
				}
				if errors.Is(tt.err, svid.ErrNotAsked) {
					time.Sleep(5 * time.Minute)
					if n := a.callsFor(50); n < 10 {
						t.Errorf("%d tries in five minutes of one that never came to the source", n)
					}
				}
			})
		})
	}
}

// What got no answer is asked for ten seconds after the last such call, one at a time, whoever is next, and however soon
// a call ends.
func TestThePaceOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &hanging{}
		m, stop := run(t, svid.Config{Signer: s, CallTimeout: 2 * time.Second})
		defer stop()
		for n := range 20 {
			m.Acquire(pod(n), sa(fmt.Sprint(n)))
		}
		if !isSilent(m, time.Minute) {
			t.Fatal("nobody noticed")
		}
		time.Sleep(time.Minute) // each has been asked for
		s.mu.Lock()
		s.at, s.most = nil, 0
		s.mu.Unlock()
		time.Sleep(10 * time.Minute)
		s.mu.Lock()
		defer s.mu.Unlock()
		for n := 1; n < len(s.at); n++ {
			if gap := s.at[n].Sub(s.at[n-1]); gap < 10*time.Second || gap > time.Minute {
				t.Errorf("asked again after %s", gap)
			}
		}
		if len(s.at) < 20 || s.most > 1 {
			t.Errorf("%d calls in ten minutes, %d at once", len(s.at), s.most)
		}
	})
}

// hanging is a Signer that never answers.
type hanging struct {
	mu        sync.Mutex
	at        []time.Time
	now, most int
}

func (s *hanging) Sign(ctx context.Context, _ spiffeid.ID, _ []byte, _ time.Duration) ([]string, error) {
	s.mu.Lock()
	s.at = append(s.at, time.Now())
	s.now++
	s.most = max(s.most, s.now)
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.now--
	s.mu.Unlock()
	return nil, ctx.Err()
}
