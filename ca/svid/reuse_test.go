package svid_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/svid"
)

// agent is a Watcher and Prover whose answers are set pod by pod. All pods of an identity get one key.
type agent struct {
	ca  *fake.Signer
	ttl time.Duration

	mu       sync.Mutex
	given    map[string][]spiffeid.ID
	made     map[spiffeid.ID]svid.SVID
	deaf     map[string]bool  // never answered
	ends     map[string]error // of open streams, by pod: closed with it
	changed  chan struct{}
	asked    []string // pods, in order
	waiting  int      // for their first message
	most     int
	proofs   map[string]error
	holding  map[string]chan struct{} // proofs that hold
	delay    time.Duration
	proven   int
	watching map[string]int
}

func newAgent(t testing.TB) *agent {
	return &agent{
		ca: newFake(t), ttl: time.Hour, given: map[string][]spiffeid.ID{}, made: map[spiffeid.ID]svid.SVID{}, deaf: map[string]bool{},
		ends: map[string]error{}, changed: make(chan struct{}), proofs: map[string]error{}, holding: map[string]chan struct{}{}, watching: map[string]int{},
	}
}

func (a *agent) tell() {
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *agent) give(pod string, ids ...spiffeid.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.given[pod] = ids
	a.tell()
}

func (a *agent) rotate(id spiffeid.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.made, id)
	a.tell()
}

func (a *agent) end(pod string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ends[pod] = err
	a.tell()
	a.changed, a.ends = make(chan struct{}), map[string]error{pod: err}
}

func (a *agent) calls() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.asked)
}

// issue makes an SVID, or repeats it. With a.mu held.
func (a *agent) issue(id spiffeid.ID) svid.SVID {
	if s, ok := a.made[id]; ok && time.Until(s.Chain[0].NotAfter) > a.ttl/2 {
		return s
	}
	s := issue(a.ca, id, a.ttl)
	a.made[id] = s
	return s
}

func issue(ca *fake.Signer, id spiffeid.ID, ttl time.Duration) svid.SVID {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}, key)
	if err != nil {
		panic(err)
	}
	answer, err := ca.Sign(context.Background(), id, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), ttl)
	if err != nil {
		panic(err)
	}
	chain, err := mtls.ParsePEM([]byte(answer[0]), 5)
	if err != nil {
		panic(err)
	}
	roots, err := mtls.ParsePEM(ca.RootsPEM(), 5)
	if err != nil {
		panic(err)
	}
	return svid.SVID{ID: id, Key: crypto.Signer(key), Chain: chain, Roots: roots}
}

func (a *agent) Watch(ctx context.Context, pod svid.Pod, _ spiffeid.ID, emit func(svid.Update)) error {
	a.mu.Lock()
	a.asked = append(a.asked, pod.UID)
	a.waiting++
	a.most = max(a.most, a.waiting)
	a.watching[pod.UID]++
	delay, deaf := a.delay, a.deaf[pod.UID]
	a.mu.Unlock()
	first := true
	spoken := func() {
		if first {
			a.waiting--
		}
		first = false
	}
	defer func() {
		a.mu.Lock()
		spoken()
		a.watching[pod.UID]--
		a.mu.Unlock()
	}()
	if deaf {
		<-ctx.Done()
		return ctx.Err()
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		a.mu.Lock()
		if err, ok := a.ends[pod.UID]; ok {
			a.mu.Unlock()
			return err
		}
		var u svid.Update
		for _, id := range a.given[pod.UID] {
			u.SVIDs = append(u.SVIDs, a.issue(id))
		}
		spoken()
		changed := a.changed
		a.mu.Unlock()
		emit(u)
		select {
		case <-changed:
		case <-time.After(a.ttl / 2):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *agent) Prove(ctx context.Context, pod svid.Pod) (svid.Proof, <-chan struct{}, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.proofs[pod.UID]; err != nil {
		return svid.Proof{}, nil, err
	}
	a.proven++
	ended := make(chan struct{})
	a.holding[pod.UID] = ended
	context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.holding[pod.UID] == ended {
			delete(a.holding, pod.UID)
		}
	})
	return svid.Proof{PID: 1}, ended, nil
}

// taken collects what is withdrawn.
type taken struct {
	mu   sync.Mutex
	pods map[string]error
}

func (k *taken) withdrawn(pod svid.Pod, _ spiffeid.ID, why error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pods == nil {
		k.pods = map[string]error{}
	}
	k.pods[pod.UID] = why
}

func (k *taken) why(pod string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pods[pod]
}

func pod(n int) svid.Pod {
	return svid.Pod{UID: fmt.Sprint("pod-", n), Namespace: "app", Name: fmt.Sprint("p", n)}
}

// At strict, every pod is asked for, whatever the others were given.
func TestStrictAsksForEveryPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		m, stop := run(t, svid.Config{Watcher: a, Prover: a, Wait: time.Second})
		defer stop()
		a.give("pod-0", sa("a"))
		mustIdentity(t, m.Acquire(pod(0), sa("a")))
		if i, err := m.Acquire(pod(1), sa("a")).Identity(t.Context()); !errors.Is(err, svid.ErrNotEntitled) {
			t.Errorf("a pod that is given nothing uses %v: %v", i, err)
		}
		if a.proven != 0 {
			t.Error("a proof was made in place of a question")
		}
	})
}

// At confirm, a proven pod uses the identity while its own stream is opened, and loses it when that says otherwise or
// nothing.
func TestConfirm(t *testing.T) {
	for name, tt := range map[string]struct {
		set   func(a *agent)
		early bool // pod-1 has a certificate at once
		late  bool // and a minute later
		why   string
	}{
		"given too":      {func(a *agent) { a.given["pod-1"] = []spiffeid.ID{sa("a")} }, true, true, ""},
		"given another":  {func(a *agent) { a.given["pod-1"] = []spiffeid.ID{sa("b")} }, true, false, "other identities or none"},
		"never answered": {func(a *agent) { a.deaf["pod-1"] = true }, true, false, "did not confirm in time"},
		"not proven":     {func(a *agent) { a.proofs["pod-1"] = errors.New("process 7 is of another pod") }, false, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, k := newAgent(t), &taken{}
				a.delay = 2 * time.Second
				tt.set(a)
				m, stop := run(t, svid.Config{Watcher: a, Prover: a, Reuse: svid.Confirm, Withdrawn: k.withdrawn, Wait: time.Second})
				defer stop()
				a.give("pod-0", sa("a"))
				first := m.Acquire(pod(0), sa("a"))
				time.Sleep(3 * time.Second)
				i := mustIdentity(t, first)
				l := m.Acquire(pod(1), sa("a"))
				time.Sleep(time.Second)
				if got := l.Current(); (got != nil) != tt.early || got != nil && got != i {
					t.Errorf("at once: %v", got)
				}
				if tt.early && m.Dump()[1].Until.IsZero() {
					t.Error("the dump does not say that it has to be confirmed")
				}
				time.Sleep(time.Minute)
				if got := l.Current(); (got != nil) != tt.late {
					t.Errorf("later: %v", got)
				}
				if why := k.why("pod-1"); tt.why == "" && why != nil || tt.why != "" && (why == nil || !contains(why, tt.why)) {
					t.Errorf("taken back: %v, want %q", why, tt.why)
				}
				if st := m.Dump()[1]; tt.late && (st.By != svid.ByStream || !st.Until.IsZero()) {
					t.Errorf("by %s until %s", st.By, st.Until)
				}
				if got := mustIdentity(t, first); got != i {
					t.Error("the one who was given it lost it")
				}
				// It does not use another's a second time.
				time.Sleep(2 * time.Minute)
				if got := l.Current(); (got != nil) != tt.late {
					t.Errorf("a second time: %v", got)
				}
			})
		})
	}
}

func contains(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }

// At local, one stream serves all proven pods of an identity, through rotation and the anchor's end.
func TestLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, k := newAgent(t), &taken{}
		m, stop := run(t, svid.Config{Watcher: a, Prover: a, Reuse: svid.Local, Sample: -1, Withdrawn: k.withdrawn})
		defer stop()
		a.delay = time.Second
		var leases []*svid.Lease
		for n := range 50 {
			a.give(pod(n).UID, sa("a"))
			leases = append(leases, m.Acquire(pod(n), sa("a")))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		i := mustIdentity(t, leases[0])
		for n, l := range leases {
			if l.Current() != i {
				t.Fatalf("pod %d has %v", n, l.Current())
			}
		}
		if got := a.calls(); len(got) != 1 || got[0] != "pod-0" {
			t.Fatalf("asked for %v", got)
		}
		a.rotate(sa("a"))
		synctest.Wait()
		next := leases[0].Current()
		if next == i || leases[49].Current() != next {
			t.Errorf("a renewal did not reach all: %v, %v", next, leases[49].Current())
		}
		// The anchor goes: the next one's stream is opened, nobody is without.
		m.Forget("pod-0")
		for range 30 {
			time.Sleep(100 * time.Millisecond)
			for n, l := range leases[1:] {
				if l.Current() == nil {
					t.Fatalf("pod %d has none while the anchor changes", n+1)
				}
			}
		}
		if got := a.calls(); len(got) != 2 || got[1] != "pod-1" {
			t.Errorf("asked for %v", got)
		}
		time.Sleep(5 * time.Minute)
		if leases[49].Current() == nil || k.why("pod-49") != nil || !m.Dump()[20].Until.IsZero() {
			t.Errorf("after the change: %v, taken back because of %v", leases[49].Current(), k.why("pod-49"))
		}
	})
}

// An anchor that is not replaced freezes the identity for two minutes, no longer.
func TestLocalWithoutAnAnchor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, k := newAgent(t), &taken{}
		m, stop := run(t, svid.Config{Watcher: a, Prover: a, Reuse: svid.Local, Sample: -1, Withdrawn: k.withdrawn})
		defer stop()
		a.give("pod-0", sa("a"))
		mustIdentity(t, m.Acquire(pod(0), sa("a")))
		a.mu.Lock()
		a.deaf["pod-1"] = true
		a.mu.Unlock()
		l := m.Acquire(pod(1), sa("a"))
		mustIdentity(t, l)
		m.Forget("pod-0")
		time.Sleep(110 * time.Second)
		if l.Current() == nil {
			t.Error("taken back at once")
		}
		time.Sleep(15 * time.Second)
		if l.Current() != nil || !contains(k.why("pod-1"), "no pod of the identity is attested") {
			t.Errorf("after two minutes: %v, %v", l.Current(), k.why("pod-1"))
		}
	})
}

// What is taken back from the anchor is taken back from all; a pod that is given it itself has it again.
func TestLocalRedaction(t *testing.T) {
	for name, take := range map[string]func(a *agent){
		"by a message": func(a *agent) { a.give("pod-0") },
		"by a denial": func(a *agent) {
			a.end("pod-0", &svid.WithdrawnError{Err: errors.New("PermissionDenied")})
		},
	} {
		t.Run(name, func(t *testing.T) { testLocalRedaction(t, take) })
	}
}

func testLocalRedaction(t *testing.T, take func(a *agent)) {
	synctest.Test(t, func(t *testing.T) {
		a, k := newAgent(t), &taken{}
		m, stop := run(t, svid.Config{Watcher: a, Prover: a, Reuse: svid.Local, Sample: -1, Withdrawn: k.withdrawn})
		defer stop()
		var leases []*svid.Lease
		for n := range 3 {
			a.give(pod(n).UID, sa("a"))
			leases = append(leases, m.Acquire(pod(n), sa("a")))
			mustIdentity(t, leases[n])
		}
		take(a)
		synctest.Wait()
		for n := range 3 {
			if k.why(pod(n).UID) == nil {
				t.Errorf("pod %d kept it", n)
			}
		}
		mustIdentity(t, leases[1])
		mustIdentity(t, leases[2])
		if got := a.calls(); !slices.Contains(got[1:], "pod-1") && !slices.Contains(got[1:], "pod-2") || slices.Contains(got, "pod-1") && slices.Contains(got, "pod-2") {
			t.Errorf("asked for %v, want one more pod", got)
		}
	})
}

// A sampled pod that the source refuses is noticed, and has nothing.
func TestLocalSample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, r := newAgent(t), &recorder{}
		m, stop := run(t, svid.Config{Watcher: a, Prover: a, Reuse: svid.Local, Sample: 100, Observer: r, Wait: time.Second})
		defer stop()
		a.give("pod-0", sa("a"))
		mustIdentity(t, m.Acquire(pod(0), sa("a")))
		if i, err := m.Acquire(pod(1), sa("a")).Identity(t.Context()); !errors.Is(err, svid.ErrNotEntitled) {
			t.Errorf("%v, %v", i, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a, r := newAgent(t), &recorder{}
		m, stop := run(t, svid.Config{Watcher: a, Prover: a, Reuse: svid.Local, Sample: 50, Observer: r})
		defer stop()
		a.give("pod-0", sa("a"))
		mustIdentity(t, m.Acquire(pod(0), sa("a")))
		for n := range 200 {
			m.Acquire(pod(n+1), sa("a"))
		}
		time.Sleep(time.Minute)
		with := 0
		for _, st := range m.Dump() {
			if st.Identity != nil {
				with++
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if with < 50 || with > 151 || !slices.Contains(r.events, "noted disagreed") {
			t.Errorf("%d of 201 have it, noted: %v", with, slices.Contains(r.events, "noted disagreed"))
		}
	})
}

// A process that ends leaves its pod's certificate in use for fifteen seconds.
func TestGraceAfterTheProcess(t *testing.T) {
	for name, again := range map[string]bool{"another one comes": true, "none comes": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, k := newAgent(t), &taken{}
				m, stop := run(t, svid.Config{Watcher: a, Withdrawn: k.withdrawn})
				defer stop()
				a.give("pod-0", sa("a"))
				l := m.Acquire(pod(0), sa("a"))
				mustIdentity(t, l)
				a.end("pod-0", fmt.Errorf("process 7: %w", svid.ErrProcessEnded))
				time.Sleep(10 * time.Second)
				if l.Current() == nil {
					t.Error("taken back at once")
				}
				if again {
					a.mu.Lock()
					a.ends = map[string]error{}
					a.mu.Unlock()
				}
				time.Sleep(10 * time.Second)
				if (l.Current() != nil) != again || (k.why("pod-0") == nil) != again {
					t.Errorf("after twenty seconds: %v, taken back because of %v", l.Current(), k.why("pod-0"))
				}
			})
		})
	}
}

func TestReuseNeedsAProver(t *testing.T) {
	for _, s := range []svid.Source{{Reuse: svid.Local}, {Reuse: svid.Confirm, Watcher: newAgent(t)}, {Reuse: "all"}} {
		if s.Validate() == nil {
			t.Errorf("took %q", s.Reuse)
		}
		m := svid.New(svid.Config{})
		if m.Switch(s, 0) == nil {
			t.Errorf("changed to %q", s.Reuse)
		}
	}
}
