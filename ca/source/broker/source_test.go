package broker_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/warren-mesh/warren/ca/fakeagent"
	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/broker"
	"github.com/warren-mesh/warren/ca/source/workloadapi"
	"github.com/warren-mesh/warren/ca/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	td    = spiffeid.RequireTrustDomainFromString("td.test")
	proxy = spiffeid.RequireFromPath(td, "/warren/proxy")
	bar   = spiffeid.RequireFromPath(td, "/ns/foo/sa/bar")
	other = spiffeid.RequireFromPath(td, "/ns/foo/sa/other")
)

// world is an agent, and a manager that gets its certificates from the agent's broker.
type world struct {
	agent   *fakeagent.Agent
	certs   *svid.Manager
	dropped chan string
}

func newWorld(t *testing.T, agentID spiffeid.ID, change func(*fakeagent.Agent)) *world {
	t.Helper()
	a, err := fakeagent.New(td, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a.Give("self", proxy)
	if change != nil {
		change(a)
	}
	ctx, cancel := context.WithCancel(context.Background())
	at, stop, err := a.Serve(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	own, err := workloadapi.New(at.Public, nil)
	if err != nil {
		t.Fatal(err)
	}
	self := workloadapi.NewSelf(own, proxy, slog.New(slog.DiscardHandler))
	b, err := broker.New(broker.Config{Address: at.Broker, TLS: mtls.ToAgent(self.Identity, broker.AgentID(agentID))})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{agent: a, dropped: make(chan string, 16)}
	w.certs = svid.New(svid.Config{Watcher: b, Withdrawn: func(p svid.Pod, id spiffeid.ID, _ error) { w.dropped <- p.UID + " " + id.String() }})
	ends := make(chan error, 2)
	go func() { ends <- self.Run(ctx) }()
	go func() { ends <- w.certs.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ends; err != nil {
				t.Error(err)
			}
		}
		stop()
		if err := errors.Join(b.Close(), own.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func get(t *testing.T, l *svid.Lease) *mtls.Identity {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	i, err := l.Identity(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// until waits for what a stream will bring.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: did not come", what)
		}
	}
}

func TestIdentityOfAPod(t *testing.T) {
	w := newWorld(t, spiffeid.ID{}, nil)
	w.agent.Give("pod:u1", other, bar) // in hostile order
	w.agent.Give("pod:u2", bar)
	l1 := w.certs.Acquire(svid.Pod{UID: "u1", Namespace: "foo", Name: "one"}, bar)
	l2 := w.certs.Acquire(svid.Pod{UID: "u2"}, bar)
	i1, i2 := get(t, l1), get(t, l2)
	if i1.ID() != bar || i1 != i2 {
		t.Errorf("got %v and %v, want one identity of %s held once", i1, i2, bar)
	}
	// A renewal is used without being asked for.
	w.agent.Rotate(bar)
	until(t, "renewal", func() bool { return get(t, l1) != i1 })
	// What is withdrawn from one pod is withdrawn from that pod alone.
	w.agent.Give("pod:u1", other)
	if got := <-w.dropped; got != "u1 "+bar.String() {
		t.Errorf("withdrawn: %s", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if i, err := l1.Identity(ctx); !errors.Is(err, svid.ErrNotEntitled) {
		t.Errorf("identity of a pod that lost it: %v, %v", i, err)
	}
	get(t, l2)
	// It comes back on the same stream.
	w.agent.Give("pod:u1", bar)
	get(t, l1)
}

func TestFederation(t *testing.T) {
	w := newWorld(t, spiffeid.ID{}, nil)
	w.agent.Give("pod:u1", bar)
	l := w.certs.Acquire(svid.Pod{UID: "u1"}, bar)
	foreign, err := fakeagent.New(spiffeid.RequireTrustDomainFromString("else.test"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := foreign.Issue(spiffeid.RequireFromPath(foreign.TD, "/ns/x/sa/y"))
	if err != nil {
		t.Fatal(err)
	}
	accepts := func() bool {
		_, err := get(t, l).VerifyPeer(stranger.Chain, x509.ExtKeyUsageClientAuth, time.Now())
		return err == nil
	}
	if accepts() {
		t.Error("a stranger was accepted")
	}
	w.agent.Federate(spiffeid.RequireTrustDomainFromString("junk.test"), &x509.Certificate{Raw: []byte("junk")}) // costs nobody else
	w.agent.Federate(foreign.TD, foreign.Roots()...)
	until(t, "federation", accepts)
	// The foreign roots vouch for their own trust domain only.
	forger, err := fakeagent.New(td, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	w.agent.Federate(foreign.TD, forger.Roots()...)
	until(t, "other roots", func() bool { return !accepts() })
	forged, err := forger.Issue(other)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := get(t, l).VerifyPeer(forged.Chain, x509.ExtKeyUsageClientAuth, time.Now()); err == nil {
		t.Errorf("roots of %s vouched for %s", foreign.TD, id)
	}
	w.agent.Federate(foreign.TD)
	until(t, "end of federation", func() bool { return !accepts() })
}

// Each thing that an agent may do wrong: nothing of it is put to use, and what was good stays.
func TestSpoiled(t *testing.T) {
	tests := map[string]func(a *fakeagent.Agent, s *fakeagent.SVID){
		"another key": func(a *fakeagent.Agent, s *fakeagent.SVID) {
			o, err := a.Issue(other)
			if err == nil {
				s.Key = o.Key
			}
		},
		"another certificate": func(a *fakeagent.Agent, s *fakeagent.SVID) {
			o, _ := a.Issue(other)
			s.Chain, s.Key = o.Chain, o.Key
		},
		"no key":         func(_ *fakeagent.Agent, s *fakeagent.SVID) { s.Key = nil },
		"no certificate": func(_ *fakeagent.Agent, s *fakeagent.SVID) { s.Chain = nil },
		"a chain that is too long": func(_ *fakeagent.Agent, s *fakeagent.SVID) {
			for range 300 {
				s.Chain = append(s.Chain, s.Chain[0])
			}
		},
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			bad := make(chan struct{})
			w := newWorld(t, spiffeid.ID{}, func(a *fakeagent.Agent) {
				spare, err := fakeagent.New(td, time.Hour)
				if err != nil {
					t.Fatal(err)
				}
				a.Change = func(ref string, s *fakeagent.SVID) {
					select {
					case <-bad:
						if strings.HasPrefix(ref, "pod:") {
							spoil(spare, s)
						}
					default:
					}
				}
			})
			w.agent.Give("pod:u1", bar)
			l := w.certs.Acquire(svid.Pod{UID: "u1"}, bar)
			good := get(t, l)
			close(bad)
			w.agent.Rotate(bar)
			until(t, "refusal", func() bool { return w.certs.Dump()[0].LastErr != nil })
			if got := get(t, l); got != good {
				t.Errorf("the good identity was replaced by %v", got)
			}
			text := w.certs.Dump()[0].LastErr.Error()
			if strings.Contains(text, "PRIVATE") {
				t.Errorf("error shows a key: %s", text)
			}
		})
	}
}

// A bundle without anything in it is trusted by nobody, from then on.
func TestNoRoots(t *testing.T) {
	w := newWorld(t, spiffeid.ID{}, nil)
	w.agent.Give("pod:u1", bar)
	l := w.certs.Acquire(svid.Pod{UID: "u1"}, bar)
	peer := get(t, l).Chain()
	w.agent.Spoil(func(ref string, s *fakeagent.SVID) {
		if strings.HasPrefix(ref, "pod:") {
			s.Roots = nil
		}
	})
	until(t, "refusal of peers", func() bool {
		_, err := get(t, l).VerifyPeer(peer, x509.ExtKeyUsageClientAuth, time.Now())
		return err != nil
	})
}

// The cap that keeps an agent alive holds, and everybody is served.
func TestBurst(t *testing.T) {
	const pods = 1000
	w := newWorld(t, spiffeid.ID{}, func(a *fakeagent.Agent) {
		a.Before = func(ctx context.Context, ref string) error {
			if strings.HasPrefix(ref, "pod:") {
				select {
				case <-time.After(2 * time.Millisecond):
				case <-ctx.Done():
				}
			}
			return nil
		}
	})
	leases := make([]*svid.Lease, pods)
	for n := range leases {
		uid := fmt.Sprint("u", n)
		w.agent.Give("pod:"+uid, bar)
		leases[n] = w.certs.Acquire(svid.Pod{UID: uid}, bar)
	}
	for _, l := range leases {
		until(t, "a pod of a burst", func() bool { _, err := l.Identity(t.Context()); return err == nil })
	}
	if most := w.agent.MostAtOnce(); most > 8+1 { // and the proxy's own
		t.Errorf("%d streams waited at once", most)
	}
}

func TestDenial(t *testing.T) {
	w := newWorld(t, spiffeid.ID{}, func(a *fakeagent.Agent) {
		a.Before = func(_ context.Context, ref string) error {
			if ref == "pod:u1" {
				return status.Error(codes.PermissionDenied, "not entitled")
			}
			return nil
		}
	})
	w.agent.Give("pod:u2", bar)
	l := w.certs.Acquire(svid.Pod{UID: "u1"}, bar)
	get(t, w.certs.Acquire(svid.Pod{UID: "u2"}, bar)) // whose certificate is no help to u1
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var withdrawn *svid.WithdrawnError
	if i, err := l.Identity(ctx); !errors.As(err, &withdrawn) {
		t.Errorf("%v, %v", i, err)
	}
}

// An endpoint that is not an agent's is not asked for anything.
func TestWrongAgent(t *testing.T) {
	w := newWorld(t, other, nil)
	w.agent.Give("pod:u1", bar)
	l := w.certs.Acquire(svid.Pod{UID: "u1"}, bar)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := l.Identity(ctx); err == nil || !strings.Contains(err.Error(), "served by") {
		t.Errorf("identity from an endpoint of the wrong identity: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	for _, a := range []string{"", "unix://relative", "/run/x.sock", "https://x", "tcp://"} {
		if _, err := broker.New(broker.Config{Address: a}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", a)) {
			t.Errorf("%q: %v", a, err)
		}
	}
}
