package delegated_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/warren-mesh/warren/ca/fakeagent"
	"github.com/warren-mesh/warren/ca/source/delegated"
	"github.com/warren-mesh/warren/ca/svid"
)

// named is a program that does what sleep does under another name.
func named(t *testing.T, name string) string {
	t.Helper()
	from, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(at, text, 0o700); err != nil {
		t.Fatal(err)
	}
	return at
}

// SPIRE is not asked for the sandbox, which it cannot attest: that would hold a place for half a minute while the application
// starts. An application may have its name.
func TestTheSandboxIsNotAskedFor(t *testing.T) {
	var asked atomic.Int64
	n := newNode(t, delegated.PID, func(a *fakeagent.Agent) {
		a.Before = func(_ context.Context, ref string) error {
			if strings.HasPrefix(ref, "pid:") {
				asked.Add(1)
			}
			return nil
		}
	})
	pause := named(t, "pause")
	sandbox, _ := n.processIn(t, uidA, strings.Repeat("b2", 32), pause)
	n.agent.Give(ref(sandbox), bar)
	err := n.source.Watch(t.Context(), n.pod(uidA), bar, func(svid.Update) {})
	if err == nil || !strings.Contains(err.Error(), "no running container yet") || !errors.Is(err, svid.ErrNotAsked) || asked.Load() > 0 {
		t.Errorf("asked %d times, %v", asked.Load(), err)
	}
	if _, _, err := n.source.Prove(t.Context(), n.pod(uidA)); err == nil {
		t.Error("the sandbox proves the pod")
	}
	time.Sleep(300 * time.Millisecond) // a look at all processes is shared for a moment; start times are in hundredths
	app, _ := n.processIn(t, uidA, strings.Repeat("c3", 32), pause)
	n.agent.Give(ref(app), bar)
	l := n.certs.Acquire(n.pod(uidA), bar)
	get(t, l)
	if got := n.certs.Dump()[0].Proof.PID; got != app {
		t.Errorf("attested by process %d, want %d", got, app)
	}
}

// A pod with very many processes does not cost as many descriptors.
func TestManyProcesses(t *testing.T) {
	n := newNode(t, delegated.PID, nil)
	for range 200 {
		pid, _ := n.process(t, uidA)
		n.agent.Give(ref(pid), bar)
	}
	open := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Error(err)
		}
		return len(all)
	}
	before, most := open(), 0
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			most = max(most, open())
		}
	}()
	get(t, n.certs.Acquire(n.pod(uidA), bar))
	cancel()
	<-done
	if more := most - before; more > 2*64+50 {
		t.Errorf("%d descriptors", more)
	}
	n.ns.Ino++ // none is proven
	err := n.source.Watch(t.Context(), n.pod(uidA), bar, func(svid.Update) {})
	if err == nil || len(err.Error()) > 2000 {
		t.Errorf("%v", err)
	}
}

// An outage takes nothing back while the process lives that was attested. When it ends meanwhile it is as at any other time:
// another one has to be attested soon, and one that starts then does not use what was given for it.
func TestTheProcessEndsInAnOutage(t *testing.T) {
	for name, another := range map[string]bool{"and none comes": false, "and another comes": true} {
		t.Run(name, func(t *testing.T) {
			var away atomic.Bool
			n := newNode(t, delegated.PID, func(a *fakeagent.Agent) {
				a.Before = func(_ context.Context, ref string) error {
					if away.Load() && strings.HasPrefix(ref, "pid:") {
						return status.Error(codes.Unavailable, "away")
					}
					return nil
				}
			})
			pid, end := n.process(t, uidA)
			n.agent.Give(ref(pid), bar)
			l := n.certs.Acquire(n.pod(uidA), bar)
			get(t, l)
			away.Store(true)
			n.agent.Spoil(func(_ string, s *fakeagent.SVID) { s.Key = nil }) // which ends the stream
			for d := time.Now().Add(time.Minute); n.certs.Dump()[0].Failures < 3; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(d) {
					t.Fatal("the stream did not end")
				}
			}
			if l.Current() == nil || !n.certs.Dump()[0].Until.IsZero() {
				t.Fatal("the outage takes it back")
			}
			if another {
				n.process(t, uidA)
			}
			end()
			remove(t, n, pid)
			for d := time.Now().Add(3 * time.Minute); l.Current() != nil; time.Sleep(100 * time.Millisecond) {
				if time.Now().After(d) {
					t.Fatal("it is in use without a process that was attested")
				}
			}
			n.agent.Spoil(nil)
			away.Store(false)
			next, _ := n.process(t, uidA)
			n.agent.Give(ref(next), bar)
			get(t, l)
		})
	}
}

// hanging is a Watcher that answers nothing any more.
type hanging struct {
	svid.Watcher
	now atomic.Bool
}

func (h *hanging) Watch(ctx context.Context, pod svid.Pod, id spiffeid.ID, emit func(svid.Update)) error {
	if h.now.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	return h.Watcher.Watch(ctx, pod, id, emit)
}

// That the process has ended is known before the source is asked again, however long that takes.
func TestTheEndOfTheProcessIsTold(t *testing.T) {
	n := newNode(t, delegated.PID, nil)
	h := &hanging{Watcher: n.source}
	m := svid.New(svid.Config{Watcher: h})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	defer func() { cancel(); <-done }()
	pid, end := n.process(t, uidA)
	n.agent.Give(ref(pid), bar)
	l := m.Acquire(n.pod(uidA), bar)
	get(t, l)
	h.now.Store(true)
	n.agent.Spoil(func(_ string, s *fakeagent.SVID) { s.Key = nil }) // which ends the stream
	await(t, "the stream did not end", func() bool { s := m.Dump()[0]; return s.InFlight && s.Failures > 0 })
	if l.Current() == nil || !m.Dump()[0].Until.IsZero() {
		t.Fatal("the outage takes it back")
	}
	end()
	await(t, "nobody was told that the process has ended", func() bool { return !m.Dump()[0].Until.IsZero() })
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}
