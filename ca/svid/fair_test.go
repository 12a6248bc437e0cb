package svid_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-mesh/warren/ca/svid"
)

// Calls are begun no faster than the bucket gives, whatever the CA takes.
func TestCallsKeepToTheBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		m, stop := run(t, svid.Config{Signer: s, PerSecond: 10, Burst: 20})
		defer stop()
		start := time.Now()
		for n := range 100 {
			m.Prefetch(sa(fmt.Sprint(n)), "w")
		}
		time.Sleep(time.Minute)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.at) != 100 {
			t.Fatalf("%d calls", len(s.at))
		}
		for n, at := range s.at {
			if allowed := 20 + 10*at.Sub(start).Seconds(); float64(n) > allowed {
				t.Fatalf("call %d after %s, %.0f are allowed by then", n, at.Sub(start), allowed)
			}
		}
		if last := s.at[99].Sub(start); last > 9*time.Second {
			t.Errorf("the last call after %s, tokens were there after 8s", last)
		}
	})
}

// Renewals leave tokens to those that somebody waits for.
func TestRenewalsLeaveTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		s.TTL = 10 * time.Minute
		m, stop := run(t, svid.Config{Signer: s, PerSecond: 0.5, Burst: 40})
		defer stop()
		for n := range 300 {
			m.Prefetch(sa(fmt.Sprint(n)), "w")
		}
		// Renewals of 300 certificates are more than half a call a second: the bucket has no more than renewals leave.
		time.Sleep(time.Hour)
		start := time.Now()
		for n := range 8 {
			mustIdentity(t, m.Acquire(pod(n), sa(fmt.Sprint("new-", n))))
		}
		if waited := time.Since(start); waited > time.Second {
			t.Errorf("new pods waited %s for renewals", waited)
		}
	})
}

// Identities that a source never answers for, waited for by connections all the time, hold up nobody else.
func TestFailuresDoNotStarveOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		m, stop := run(t, svid.Config{Watcher: a, Wait: 10 * time.Second})
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		for n := range 100 {
			a.mu.Lock()
			a.deaf[pod(n).UID] = true
			a.mu.Unlock()
			l := m.Acquire(pod(n), sa("bad"))
			wg.Go(func() {
				for ctx.Err() == nil {
					_, _ = l.Identity(ctx)
				}
			})
		}
		time.Sleep(10 * time.Minute) // each has failed by now
		for n := range 20 {
			p := pod(1000 + n)
			a.give(p.UID, sa("good"))
			start := time.Now()
			mustIdentity(t, m.Acquire(p, sa("good")))
			if waited := time.Since(start); waited > time.Second {
				t.Fatalf("a new pod waited %s for pods that get no answer", waited)
			}
			time.Sleep(7 * time.Second)
		}
		if a.most > 8 {
			t.Errorf("%d waited for their first message at once", a.most)
		}
	})
}

// A thousand pods at once: the agent is never asked by more than eight, each gets its certificate.
func TestABurstOfPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		a.delay = 20 * time.Millisecond
		m, stop := run(t, svid.Config{Watcher: a})
		defer stop()
		for n := range 1000 {
			a.give(pod(n).UID, sa(fmt.Sprint(n%50)))
			m.Acquire(pod(n), sa(fmt.Sprint(n%50)))
		}
		time.Sleep(30 * time.Second)
		for _, st := range m.Dump() {
			if st.Identity == nil {
				t.Fatalf("%s of %s: %s", st.ID, st.Holder, st.Text())
			}
		}
		if a.most > 8 || len(a.calls()) != 1000 {
			t.Errorf("%d waited at once, %d were asked for", a.most, len(a.calls()))
		}
	})
}

// spread starts a node with so many certificates of one moment, and counts renewals a minute in the half lives that
// follow.
func spread(t testing.TB, identities int, ttl time.Duration) (busiest, mean float64, most int) {
	s := newSigner(t)
	s.TTL = ttl
	m, stop := run(t, svid.Config{Signer: s, MaxIdentities: identities})
	defer stop()
	for n := range identities {
		m.Prefetch(sa(fmt.Sprint(n)), "w")
	}
	time.Sleep(ttl + ttl/5)
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.at[identities-1]
	counts := map[int]int{}
	for _, at := range s.at[identities:] {
		counts[int(at.Sub(first)/time.Minute)]++
	}
	half := int(ttl / 2 / time.Minute)
	// The first half life begins when the earliest may be renewed.
	begin := int((ttl/10 + time.Minute - 1) / time.Minute)
	for n := range 2 {
		sum, top := 0, 0
		for minute := begin + n*half; minute < begin+(n+1)*half; minute++ {
			sum += counts[minute]
			top = max(top, counts[minute])
		}
		mean = float64(sum) / float64(half)
		busiest = max(busiest, float64(top)/mean)
	}
	return busiest, mean, s.most
}

// A node's renewals are spread: the busiest minute of a half life has 1.5 times the mean at most.
func TestRenewalsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busiest, mean, most := spread(t, 600, 8*time.Minute)
		if mean < 100 || busiest > 1.5 || most > 8 {
			t.Errorf("%.0f a minute, busiest %.2f times the mean, %d at once", mean, busiest, most)
		}
	})
}

// BenchmarkRenewals prints what TestRenewalsAreSpread judges, of a node with 5,000 identities (WARREN_IDENTITIES) and
// certificates of an hour.
func BenchmarkRenewals(b *testing.B) {
	identities := 5000
	if v := os.Getenv("WARREN_IDENTITIES"); v != "" {
		var err error
		if identities, err = strconv.Atoi(v); err != nil || identities < 1 {
			b.Fatalf("WARREN_IDENTITIES=%q is no number of identities", v)
		}
	}
	var busiest, mean float64
	for b.Loop() {
		// A bubble has its own time, and wants a T.
		ok := testing.RunTests(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{Name: b.Name(), F: func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { busiest, mean, _ = spread(t, identities, time.Hour) })
		}}})
		if !ok {
			b.Fatal("the node did not come up")
		}
	}
	b.ReportMetric(mean, "renewals/min")
	b.ReportMetric(busiest, "busiest/mean")
}

// An agent that begins anew under many pods is asked by eight at a time.
func TestAgentRestartUnderSubscribers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, k := newAgent(t), &taken{}
		a.delay = 10 * time.Millisecond
		m, stop := run(t, svid.Config{Watcher: a, Withdrawn: k.withdrawn})
		defer stop()
		for n := range 250 {
			a.give(pod(n).UID, sa("a"))
			m.Acquire(pod(n), sa("a"))
		}
		time.Sleep(10 * time.Second)
		a.mu.Lock()
		for n := range 250 {
			a.ends[pod(n).UID] = fmt.Errorf("the agent closed the stream")
		}
		a.tell()
		a.mu.Unlock()
		synctest.Wait()
		a.mu.Lock()
		clear(a.ends)
		asked := len(a.asked)
		a.mu.Unlock()
		time.Sleep(time.Minute)
		a.mu.Lock()
		open := 0
		for _, n := range a.watching {
			open += n
		}
		a.mu.Unlock()
		if open != 250 || a.most > 8 || len(k.pods) > 0 {
			t.Errorf("%d streams, %d waited at once, %d were taken back", open, a.most, len(k.pods))
		}
		if again := slices.Clone(a.calls()[asked:]); len(again) < 1 {
			t.Error("nobody asked again")
		}
	})
}
