package svid_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/svid"
)

var td = spiffeid.RequireTrustDomainFromString("td.test")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sa(name string) spiffeid.ID { return spiffeid.RequireFromPathf(td, "/ns/app/sa/%s", name) }

func newFake(t testing.TB) *fake.Signer {
	t.Helper()
	f, err := fake.New(td, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// run starts a manager and stops it at the test's end, inside its bubble.
func run(t testing.TB, cfg svid.Config) (*svid.Manager, func()) {
	t.Helper()
	m := svid.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	return m, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func mustIdentity(t testing.TB, l *svid.Lease) *mtls.Identity {
	t.Helper()
	i, err := l.Identity(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// signer counts and orders the calls of a fake.
type signer struct {
	*fake.Signer
	mu       sync.Mutex
	order    []string
	at       []time.Time
	inFlight int
	most     int
	err      error
	hold     chan struct{} // if set, every call waits for one receive
}

func newSigner(t testing.TB) *signer {
	s := &signer{Signer: newFake(t)}
	s.Before = s.before
	return s
}

func (s *signer) before(ctx context.Context, id spiffeid.ID) error {
	s.mu.Lock()
	s.order = append(s.order, id.Path()[len("/ns/app/sa/"):])
	s.at = append(s.at, time.Now())
	s.inFlight++
	s.most = max(s.most, s.inFlight)
	hold := s.hold
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.inFlight--
		s.mu.Unlock()
	}()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *signer) calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.order...)
}

func (s *signer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *signer) last() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at[len(s.at)-1]
}

func TestLeaseGivesTheCertificateOfItsIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, stop := run(t, svid.Config{Signer: newFake(t)})
		defer stop()
		l := m.Acquire(svid.Pod{UID: "pod-1"}, sa("a"))
		i := mustIdentity(t, l)
		if i.ID() != sa("a") {
			t.Errorf("got %s", i.ID())
		}
		if again := mustIdentity(t, l); again != i {
			t.Error("a second call gave another identity")
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = l.Identity(t.Context()) }); n > 0 {
			t.Errorf("%v allocations to read a certificate that is there", n)
		}
	})
}

func TestPodsOfOneIdentityShareOneFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		s.hold = make(chan struct{})
		m, stop := run(t, svid.Config{Signer: s})
		defer stop()
		var wg sync.WaitGroup
		for n := range 50 {
			l := m.Acquire(svid.Pod{UID: fmt.Sprintf("pod-%d", n)}, sa("a"))
			wg.Go(func() { mustIdentity(t, l) })
		}
		synctest.Wait()
		close(s.hold)
		wg.Wait()
		if got := s.calls(); len(got) != 1 {
			t.Errorf("%d requests for one identity", len(got))
		}
	})
}

func TestPrioritiesAndTheCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		s.hold = make(chan struct{})
		m, stop := run(t, svid.Config{Signer: s, MaxInFlight: 1})
		defer stop()
		m.Prefetch(sa("first"), "w0") // takes the only place
		synctest.Wait()
		m.Prefetch(sa("warm-1"), "w1")
		time.Sleep(time.Millisecond)
		m.Prefetch(sa("warm-2"), "w2")
		time.Sleep(time.Millisecond)
		m.Prefetch(sa("bumped"), "w3")
		time.Sleep(time.Millisecond)
		waiting := m.Acquire(svid.Pod{UID: "pod"}, sa("waiting"))
		bumped := m.Acquire(svid.Pod{UID: "pod"}, sa("bumped"))
		var wg sync.WaitGroup
		wg.Go(func() { mustIdentity(t, waiting) })
		synctest.Wait()
		wg.Go(func() { mustIdentity(t, bumped) })
		synctest.Wait()
		close(s.hold)
		wg.Wait()
		synctest.Wait()
		want := []string{"first", "bumped", "waiting", "warm-1", "warm-2"}
		if diff := cmp.Diff(want, s.calls()); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
		if s.most != 1 {
			t.Errorf("%d calls at once, the cap is 1", s.most)
		}
	})
}

func TestFiveHundredPrefetchesKeepToTheCapAndNoneIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		before := s.Before
		s.Before = func(ctx context.Context, id spiffeid.ID) error {
			time.Sleep(50 * time.Millisecond)
			return before(ctx, id)
		}
		s.hold = make(chan struct{}) // all wait for the sleepers, so the cap is reached
		close(s.hold)
		m, stop := run(t, svid.Config{Signer: s})
		defer stop()
		for n := range 500 {
			m.Prefetch(sa(fmt.Sprint(n)), fmt.Sprint("w", n))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, st := range m.Dump() {
			if st.Condition != svid.Available {
				t.Fatalf("%s is %s", st.ID, st.Text())
			}
		}
		if len(s.calls()) != 500 {
			t.Errorf("%d requests", len(s.calls()))
		}
		if s.most > 8 {
			t.Errorf("%d calls at once", s.most)
		}
	})
}

func TestRefreshIsAtHalfLifeFromReceipt(t *testing.T) {
	for _, ttl := range []time.Duration{10 * time.Second, time.Minute, 24 * time.Hour} {
		t.Run(ttl.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSigner(t)
				m, stop := run(t, svid.Config{Signer: s, TTL: ttl})
				defer stop()
				m.Prefetch(sa("a"), "w")
				for round := range 20 {
					synctest.Wait()
					before, n := s.last(), len(s.calls())
					next := m.Dump()[0].NextRefresh.Sub(before)
					// Certificates count in whole seconds.
					lo, hi := (ttl-time.Second)*44/100, ttl*56/100
					if round == 0 {
						lo = (ttl - time.Second) * 9 / 100 // the first one spreads a node that starts
					}
					if next < lo || next > hi {
						t.Fatalf("next request after %s, outside [%s, %s]", next, lo, hi)
					}
					time.Sleep(next)
					synctest.Wait()
					if len(s.calls()) != n+1 {
						t.Fatalf("%d requests, want %d", len(s.calls()), n+1)
					}
				}
			})
		})
	}
}

// Two pods with certificates of ten seconds talk for two minutes, through twenty rotations on each side.
func TestTenSecondCertificatesRotateWithoutAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		m, stop := run(t, svid.Config{Signer: s, TTL: 10 * time.Second})
		defer stop()
		a, b := m.Acquire(svid.Pod{UID: "pod-a"}, sa("a")), m.Acquire(svid.Pod{UID: "pod-b"}, sa("b"))
		server := mtls.Server(b.Identity)
		serials := map[string]bool{}
		for range 240 {
			i := mustIdentity(t, a)
			serials[i.Chain()[0].SerialNumber.String()] = true
			if left := time.Until(i.NotAfter()); left < 4*time.Second {
				t.Fatalf("a certificate with %s left was given", left)
			}
			if err := shake(mtls.Client(i, []spiffeid.ID{sa("b")}), server); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond)
		}
		if len(serials) < 20 {
			t.Errorf("%d certificates in two minutes", len(serials))
		}
	})
}

// shake makes a handshake over a pipe.
func shake(client, server *tls.Config) error {
	c, s := net.Pipe()
	done := make(chan error, 1)
	go func() {
		defer s.Close()
		done <- tls.Server(s, server).Handshake()
	}()
	tc := tls.Client(c, client)
	err := tc.Handshake()
	c.Close()
	return errors.Join(err, <-done)
}

func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		m, stop := run(t, svid.Config{Signer: s, TTL: time.Hour})
		defer stop()
		l := m.Acquire(svid.Pod{UID: "pod"}, sa("a"))
		first := mustIdentity(t, l)
		down := errors.New("signing gRPC error (Unavailable): connection refused")
		s.fail(down)
		time.Sleep(59 * time.Minute)
		if got := mustIdentity(t, l); got != first {
			t.Fatal("a failing source took a valid certificate away")
		}
		if st := m.Dump()[0]; st.Condition != svid.Available || !errors.Is(st.LastErr, down) || st.Failures == 0 {
			t.Errorf("during the outage: %s, %v after %d failures", st.Condition, st.LastErr, st.Failures)
		}
		time.Sleep(time.Minute + time.Second)
		before := time.Now()
		_, err := l.Identity(t.Context())
		if !errors.Is(err, down) {
			t.Fatalf("expired: got %v", err)
		}
		if waited := time.Since(before); waited > 11*time.Second {
			t.Errorf("the caller waited %s", waited)
		}
		if st := m.Dump()[0]; st.Condition != svid.Unavailable || st.Identity != nil || !strings.HasPrefix(st.Text(), "Unavailable: signing gRPC error") {
			t.Errorf("after the end: %s", st.Text())
		}
		s.fail(nil)
		mustIdentity(t, l)
	})
}

// A CA that is away for hours: certificates stay in use to their end and not beyond, tries are few, and when it is back
// everybody has a new one within minutes.
func TestOutageOfHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		m, stop := run(t, svid.Config{Signer: s, TTL: 24 * time.Hour})
		defer stop()
		var leases []*svid.Lease
		const pods = 8
		for n := range pods {
			leases = append(leases, m.Acquire(svid.Pod{UID: fmt.Sprint(n)}, sa(fmt.Sprint(n))))
		}
		time.Sleep(time.Minute)
		s.fail(errors.New("connection refused"))
		before := len(s.calls())
		for range 9 * 60 {
			time.Sleep(time.Minute)
			for _, l := range leases {
				if l.Current() == nil {
					t.Fatal("a certificate was lost in an outage of hours")
				}
			}
		}
		// Full jitter up to 150 s each.
		if tries := len(s.calls()) - before; tries > pods*9*3600/60 {
			t.Errorf("%d tries in nine hours", tries)
		}
		s.fail(nil)
		time.Sleep(5 * time.Minute)
		for _, l := range leases {
			if left := time.Until(mustIdentity(t, l).NotAfter()); left < 12*time.Hour {
				t.Fatalf("%s are left after the outage", left)
			}
		}
		s.fail(errors.New("connection refused"))
		time.Sleep(24*time.Hour + time.Minute)
		for _, l := range leases {
			if l.Current() != nil {
				t.Fatal("an expired certificate is given")
			}
			if l.Held() == nil {
				t.Fatal("whom it trusted is forgotten")
			}
		}
		s.fail(nil)
		time.Sleep(time.Minute)
		for _, l := range leases {
			if l.Current() == nil {
				t.Fatal("no certificate a minute after the outage")
			}
		}
	})
}

// ztunnel answers with a cached error until its next try, up to 150 s later.
func TestADemandBringsTheRetryForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		s.fail(errors.New("not yet"))
		m, stop := run(t, svid.Config{Signer: s})
		defer stop()
		l := m.Acquire(svid.Pod{UID: "pod"}, sa("a"))
		time.Sleep(10 * time.Minute) // far into the back-off
		synctest.Wait()
		s.fail(nil)
		start := time.Now()
		mustIdentity(t, l)
		if waited := time.Since(start); waited > 2*time.Second {
			t.Errorf("waited %s for a source that works", waited)
		}
	})
}

func TestRetriesBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		s.fail(errors.New("no"))
		m, stop := run(t, svid.Config{Signer: s})
		defer stop()
		m.Prefetch(sa("a"), "w")
		time.Sleep(10 * time.Minute)
		// Full jitter up to 15 s: 80 on average, plus the first few.
		if n := len(s.calls()); n < 45 || n > 160 {
			t.Errorf("%d tries in ten minutes", n)
		}
	})
}

func TestTheSourcesWishForAPauseIsHonoured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		s.fail(&svid.RetryAfterError{After: 20 * time.Second, Err: errors.New("slow down")})
		m, stop := run(t, svid.Config{Signer: s, Wait: time.Minute})
		defer stop()
		start := time.Now()
		a := m.Acquire(svid.Pod{UID: "pod"}, sa("a"))
		synctest.Wait()
		s.fail(nil)
		b := m.Acquire(svid.Pod{UID: "pod"}, sa("b"))
		mustIdentity(t, b)
		mustIdentity(t, a)
		if waited := time.Since(start); waited < 20*time.Second || waited > 23*time.Second {
			t.Errorf("asked again after %s, wish was 20s", waited)
		}
	})
}

func TestAPermanentErrorIsToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		cause := errors.New("TTL too long")
		s.fail(&svid.PermanentError{Err: cause})
		m, stop := run(t, svid.Config{Signer: s})
		defer stop()
		l := m.Acquire(svid.Pod{UID: "pod"}, sa("a"))
		start := time.Now()
		if _, err := l.Identity(t.Context()); !errors.Is(err, cause) {
			t.Fatalf("got %v", err)
		}
		if waited := time.Since(start); waited > time.Second {
			t.Errorf("after %s", waited)
		}
		s.fail(nil)
		mustIdentity(t, l)
	})
}

func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		m, stop := run(t, svid.Config{Signer: s})
		defer stop()
		one, two := m.Acquire(svid.Pod{UID: "pod-1"}, sa("a")), m.Acquire(svid.Pod{UID: "pod-2"}, sa("a"))
		m.Prefetch(sa("a"), "pod-1")
		mustIdentity(t, one)
		m.Forget("pod-1")
		if _, err := one.Identity(t.Context()); !errors.Is(err, svid.ErrNotNeeded) {
			t.Errorf("forgotten holder: %v", err)
		}
		select {
		case <-one.Done():
		default:
			t.Error("Done is open")
		}
		mustIdentity(t, two)
		two.Release()
		two.Release()
		one.Release()
		m.Forget("pod-1")
		m.Forget("never seen")
		if d := m.Dump(); len(d) != 0 {
			t.Errorf("%v is left", d)
		}
		time.Sleep(48 * time.Hour)
		if n := len(s.calls()); n != 1 {
			t.Errorf("a forgotten identity was renewed: %d requests", n)
		}
	})
}

func TestForgetInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		s.hold = make(chan struct{})
		m, stop := run(t, svid.Config{Signer: s})
		defer stop()
		l := m.Acquire(svid.Pod{UID: "pod"}, sa("a"))
		got := make(chan error, 1)
		go func() {
			_, err := l.Identity(context.Background())
			got <- err
		}()
		synctest.Wait()
		m.Forget("pod")
		if err := <-got; !errors.Is(err, svid.ErrNotNeeded) || err.Error() != "the identity is no longer needed" {
			t.Errorf("waiting caller: %v", err)
		}
		synctest.Wait()
		if s.inFlight != 0 {
			t.Error("the request was not cancelled")
		}
	})
}

// A pod is recreated while a source that ignores its context still works for the old one: the old answer must not be
// used, and there must be no second call before it is back.
func TestForgetAndReturnWhileTheOldCallHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		release := make(chan struct{})
		var mu sync.Mutex
		var running, most, calls int
		f.Before = func(context.Context, spiffeid.ID) error {
			mu.Lock()
			calls++
			running++
			most = max(most, running)
			first := calls == 1
			mu.Unlock()
			if first {
				<-release
			}
			mu.Lock()
			running--
			mu.Unlock()
			return nil
		}
		m, stop := run(t, svid.Config{Signer: f})
		defer stop()
		m.Acquire(svid.Pod{UID: "old"}, sa("a"))
		synctest.Wait()
		m.Forget("old")
		l := m.Acquire(svid.Pod{UID: "new"}, sa("a"))
		got := make(chan *mtls.Identity, 1)
		go func() {
			i, _ := l.Identity(context.Background())
			got <- i
		}()
		synctest.Wait()
		close(release)
		if i := <-got; i == nil {
			t.Error("no certificate for the new pod")
		}
		mu.Lock()
		defer mu.Unlock()
		if calls != 2 || most != 1 {
			t.Errorf("%d calls, %d at once; want 2, 1", calls, most)
		}
	})
}

func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		s.fail(errors.New("no"))
		m, stop := run(t, svid.Config{Signer: s, MaxIdentities: 2})
		defer stop()
		m.Prefetch(sa("guess"), "w1")
		a := m.Acquire(svid.Pod{UID: "pod-a"}, sa("a"))
		time.Sleep(time.Millisecond)
		b := m.Acquire(svid.Pod{UID: "pod-b"}, sa("b")) // the guess makes room
		c := m.Acquire(svid.Pod{UID: "pod-c"}, sa("c"))
		if a.Err() != nil || b.Err() != nil {
			t.Errorf("leases within the bound: %v, %v", a.Err(), b.Err())
		}
		if _, err := c.Identity(t.Context()); !errors.Is(err, svid.ErrTooMany) {
			t.Errorf("beyond the bound: %v", err)
		}
		c.Release()
		m.Prefetch(sa("d"), "w2")
		if n := len(m.Dump()); n != 2 {
			t.Errorf("%d identities", n)
		}
	})
}

func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSigner(t)
		m, stop := run(t, svid.Config{Signer: s})
		l := m.Acquire(svid.Pod{UID: "pod"}, sa("a"))
		mustIdentity(t, l)
		s.hold = make(chan struct{})
		hanging := m.Acquire(svid.Pod{UID: "pod"}, sa("b"))
		got := make(chan error, 1)
		go func() {
			_, err := hanging.Identity(context.Background())
			got <- err
		}()
		synctest.Wait()
		stop()
		if err := <-got; !errors.Is(err, svid.ErrStopped) {
			t.Errorf("waiting caller: %v", err)
		}
		if _, err := l.Identity(t.Context()); !errors.Is(err, svid.ErrStopped) {
			t.Errorf("lease: %v", err)
		}
		if err := m.Acquire(svid.Pod{UID: "pod"}, sa("c")).Err(); !errors.Is(err, svid.ErrStopped) {
			t.Errorf("late lease: %v", err)
		}
	})
}

func TestAnswersThatDoNotFitAreRefused(t *testing.T) {
	other := sa("other")
	tests := []struct {
		name   string
		change func(t *testing.T, f *fake.Signer, ctx context.Context, csr []byte, ttl time.Duration, good []string) []string
		want   string
	}{
		{"empty", func(*testing.T, *fake.Signer, context.Context, []byte, time.Duration, []string) []string { return nil },
			"chain returned from CA is empty for: spiffe://td.test/ns/app/sa/a"},
		{"only a leaf", func(_ *testing.T, _ *fake.Signer, _ context.Context, _ []byte, _ time.Duration, good []string) []string {
			return good[:1]
		}, "no root certificate present"},
		{"empty roots", func(_ *testing.T, _ *fake.Signer, _ context.Context, _ []byte, _ time.Duration, good []string) []string {
			return []string{good[0], ""}
		}, "no root certificate present"},
		{"not PEM", func(_ *testing.T, _ *fake.Signer, _ context.Context, _ []byte, _ time.Duration, good []string) []string {
			return []string{"hello", good[1]}
		}, "no PEM block found"},
		{"a root of somebody else", func(t *testing.T, _ *fake.Signer, _ context.Context, _ []byte, _ time.Duration, good []string) []string {
			return []string{good[0], string(newFake(t).RootsPEM())}
		}, "unknown authority"},
		{"too large", func(_ *testing.T, _ *fake.Signer, _ context.Context, _ []byte, _ time.Duration, good []string) []string {
			return []string{strings.Repeat("x", 300<<10), good[1]}
		}, "more than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				m, stop := run(t, svid.Config{Wait: time.Second, Signer: signFunc(func(ctx context.Context, id spiffeid.ID, csr []byte, ttl time.Duration) ([]string, error) {
					good, err := f.Sign(ctx, id, csr, ttl)
					if err != nil {
						return nil, err
					}
					return tt.change(t, f, ctx, csr, ttl, good), nil
				})})
				defer stop()
				_, err := m.Acquire(svid.Pod{UID: "pod"}, sa("a")).Identity(t.Context())
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
			})
		})
	}
	t.Run("another identity's certificate", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t)
			saved := map[spiffeid.ID][]string{}
			var mu sync.Mutex
			m, stop := run(t, svid.Config{Wait: time.Second, Signer: signFunc(func(ctx context.Context, id spiffeid.ID, csr []byte, ttl time.Duration) ([]string, error) {
				mu.Lock()
				defer mu.Unlock()
				if id == other {
					got, err := f.Sign(ctx, id, csr, ttl)
					saved[id] = got
					return got, err
				}
				return saved[other], nil
			})})
			defer stop()
			mustIdentity(t, m.Acquire(svid.Pod{UID: "pod"}, other))
			_, err := m.Acquire(svid.Pod{UID: "pod"}, sa("a")).Identity(t.Context())
			if err == nil || !strings.Contains(err.Error(), "issued for another key") {
				t.Errorf("got %v", err)
			}
		})
	})
}

type signFunc func(context.Context, spiffeid.ID, []byte, time.Duration) ([]string, error)

func (f signFunc) Sign(ctx context.Context, id spiffeid.ID, csr []byte, ttl time.Duration) ([]string, error) {
	return f(ctx, id, csr, ttl)
}

// A root is replaced: certificates of both roots accept each other until the last one of the old root is renewed, and
// then the old root is gone.
func TestRootsAreTheUnionOfAnswersInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := newFake(t), newFake(t)
		both := string(before.RootsPEM()) + string(after.RootsPEM())
		var mu sync.Mutex
		stage := 0
		m, stop := run(t, svid.Config{TTL: time.Hour, Signer: signFunc(func(ctx context.Context, id spiffeid.ID, csr []byte, ttl time.Duration) ([]string, error) {
			mu.Lock()
			defer mu.Unlock()
			switch stage {
			case 0:
				return before.Sign(ctx, id, csr, ttl)
			default:
				got, err := after.Sign(ctx, id, csr, ttl)
				if err == nil && stage == 1 {
					got[len(got)-1] = both
				}
				return got, err
			}
		})})
		defer stop()
		a := m.Acquire(svid.Pod{UID: "pod-a"}, sa("a"))
		mustIdentity(t, a)
		mu.Lock()
		stage = 1
		mu.Unlock()
		b := m.Acquire(svid.Pod{UID: "pod-b"}, sa("b"))
		ib, ia := mustIdentity(t, b), mustIdentity(t, a)
		if len(ia.Roots()) != 2 || len(ib.Roots()) != 2 {
			t.Fatalf("roots: %d and %d, want 2 and 2", len(ia.Roots()), len(ib.Roots()))
		}
		if err := shake(mtls.Client(ia, []spiffeid.ID{sa("b")}), mtls.Server(b.Identity)); err != nil {
			t.Errorf("old to new: %v", err)
		}
		if err := shake(mtls.Client(ib, []spiffeid.ID{sa("a")}), mtls.Server(a.Identity)); err != nil {
			t.Errorf("new to old: %v", err)
		}
		mu.Lock()
		stage = 2
		mu.Unlock()
		time.Sleep(2 * time.Hour) // both are renewed
		if n := len(mustIdentity(t, a).Roots()); n != 1 {
			t.Errorf("%d roots after the change", n)
		}
	})
}

// recorder is an Observer.
type recorder struct {
	mu     sync.Mutex
	events []string
}

func (r *recorder) Started(id spiffeid.ID, p svid.Priority) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, "started "+p.String())
}

func (r *recorder) Finished(id spiffeid.ID, p svid.Priority, _ time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf("finished %s %v", p, err))
}

func (r *recorder) Noted(_ spiffeid.ID, what svid.Note) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, "noted "+string(what))
}

func TestObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		m, stop := run(t, svid.Config{Signer: newFake(t), TTL: time.Hour, Observer: r})
		m.Prefetch(sa("a"), "w")
		time.Sleep(35 * time.Minute)
		stop()
		want := []string{"started warm-up", "finished warm-up <nil>", "started background", "finished background <nil>"}
		if diff := cmp.Diff(want, r.events); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// Pods come and go at random while the source fails at random. Whatever the order: nobody uses an identity without
// holding it, nothing expired is given, the cap holds, one identity has one call, and in the end nothing is left.
func TestRandomOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var mu sync.Mutex
		running, all, most := map[spiffeid.ID]int{}, 0, 0
		f.Before = func(ctx context.Context, id spiffeid.ID) error {
			mu.Lock()
			running[id]++
			all++
			most = max(most, all)
			if running[id] > 1 {
				t.Errorf("%d calls for %s", running[id], id)
			}
			mu.Unlock()
			time.Sleep(rand.N(200 * time.Millisecond))
			mu.Lock()
			defer mu.Unlock()
			running[id]--
			all--
			if rand.N(4) == 0 {
				return errors.New("no")
			}
			return nil
		}
		m, stop := run(t, svid.Config{Signer: f, TTL: 10 * time.Second, MaxInFlight: 3, MaxIdentities: 6})
		var wg sync.WaitGroup
		for n := range 20 {
			wg.Go(func() {
				holder := fmt.Sprint("pod-", n)
				for range 100 {
					id := sa(fmt.Sprint(rand.N(8)))
					if rand.N(3) == 0 {
						m.Prefetch(id, holder)
					}
					l := m.Acquire(svid.Pod{UID: holder}, id)
					ctx, cancel := context.WithTimeout(t.Context(), rand.N(time.Second))
					i, err := l.Identity(ctx)
					cancel()
					if err == nil && (i.ID() != id || i.Expired(time.Now())) {
						t.Errorf("got %s for %s at %s", i, id, time.Now())
					}
					time.Sleep(rand.N(500 * time.Millisecond))
					if rand.N(2) == 0 {
						l.Release()
					} else {
						m.Forget(holder)
					}
					if i, err := l.Identity(t.Context()); err == nil {
						t.Errorf("%s is given after its lease", i)
					}
				}
				m.Forget(holder)
			})
		}
		wg.Wait()
		if most > 3 {
			t.Errorf("%d calls at once", most)
		}
		if d := m.Dump(); len(d) != 0 {
			t.Errorf("%d identities are left", len(d))
		}
		stop()
	})
}

func BenchmarkLeaseIdentity(b *testing.B) {
	m, stop := run(b, svid.Config{Signer: newFake(b)})
	defer stop()
	l := m.Acquire(svid.Pod{UID: "pod"}, sa("a"))
	mustIdentity(b, l)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Identity(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
