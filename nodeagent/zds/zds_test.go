package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-mesh/warren/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// agent is a server with the pods that it is to know.
type agent struct {
	*Server
	path string

	mu   sync.Mutex
	pods []Workload
}

func (a *agent) set(pods ...Workload) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods = pods
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// start runs fn until the test ends, or until the returned function is called.
func start(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	return newAgentWithin(t, ackTimeout)
}

func newAgentWithin(t *testing.T, timeout time.Duration) *agent {
	t.Helper()
	a := &agent{path: filepath.Join(t.TempDir(), "z.sock")}
	a.Server = NewServer(a.path, func() []Workload {
		a.mu.Lock()
		defer a.mu.Unlock()
		return slices.Clone(a.pods)
	}, quiet())
	a.timeout = timeout
	l, err := Listen(network, a.path)
	if err != nil {
		t.Fatal(err)
	}
	start(t, func(ctx context.Context) error { return a.Serve(ctx, l) })
	return a
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func pod(t *testing.T, uid string) Workload {
	t.Helper()
	ns, _ := nstest.NewNS(t, uid)
	return Workload{UID: uid, Info: Info{Name: uid, Namespace: "app", ServiceAccount: "sa"}, NS: ns}
}

// proxy connects a fake and waits for its snapshot.
func proxy(t *testing.T, a *agent) (f *FakeProxy, stop func()) {
	t.Helper()
	f = NewFakeProxy(a.path)
	before := a.Connected()
	stop = start(t, f.Run)
	if err := f.Wait(within(t), func() bool { return f.Synced() }); err != nil {
		t.Fatal("no snapshot:", err)
	}
	eventually(t, func() bool { return a.Connected() == before+1 })
	return f, stop
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never came to be")
		}
	}
}

func uids(f *FakeProxy) string {
	var all []string
	for uid := range f.Pods() {
		all = append(all, uid)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestSnapshotThenChanges(t *testing.T) {
	nstest.Require(t)
	nstest.LeakCheck(t)
	a := newAgent(t)
	one, two := pod(t, "one"), pod(t, "two")
	a.set(one, Workload{UID: "kept"})
	f, _ := proxy(t, a)
	if got := fmt.Sprint(f.Events()); got != "[add one keep kept snapshot]" {
		t.Errorf("the snapshot was %s", got)
	}
	a.set(one, two)
	if err := a.Add(within(t), two); err != nil {
		t.Fatal(err)
	}
	if got := f.Pods()["two"]; got != (FakePod{two.Info, two.NS.ID()}) {
		t.Errorf("the proxy got %+v", got)
	}
	if err := a.Del(within(t), "one"); err != nil {
		t.Fatal(err)
	}
	if err := a.Del(within(t), "unknown"); err != nil {
		t.Errorf("del of an unknown pod: %v", err)
	}
	if got := uids(f); got != "two" {
		t.Errorf("the proxy serves %q", got)
	}
}

func TestClosedNamespaceIsLeftOutOfTheSnapshot(t *testing.T) {
	nstest.Require(t)
	a := newAgent(t)
	gone, there := pod(t, "gone"), pod(t, "there")
	gone.NS, _ = gone.NS.Dup()
	gone.NS.Close()
	a.set(gone, there)
	f, _ := proxy(t, a)
	if got := uids(f); got != "there" {
		t.Errorf("the proxy serves %q", got)
	}
}

func TestNewestProxyGetsAddsAllGetDels(t *testing.T) {
	nstest.Require(t)
	nstest.LeakCheck(t)
	a := newAgent(t)
	one, two := pod(t, "one"), pod(t, "two")
	a.set(one)
	older, _ := proxy(t, a)
	newer, stopNewer := proxy(t, a)
	a.set(one, two)
	if err := a.Add(within(t), two); err != nil {
		t.Fatal(err)
	}
	if o, n := uids(older), uids(newer); o != "one" || n != "one two" {
		t.Errorf("older serves %q, newer %q", o, n)
	}
	a.set(two)
	if err := a.Del(within(t), "one"); err != nil {
		t.Fatal(err)
	}
	if o, n := uids(older), uids(newer); o != "" || n != "two" {
		t.Errorf("after del, older serves %q, newer %q", o, n)
	}
	stopNewer()
	if err := older.Wait(within(t), func() bool { return uids(older) == "two" }); err != nil {
		t.Errorf("the proxy that is left was not caught up: it serves %q", uids(older))
	}
}

func TestAddWaitsForAProxy(t *testing.T) {
	nstest.Require(t)
	nstest.LeakCheck(t)
	a := newAgent(t)
	one := pod(t, "one")
	done := make(chan error, 1)
	go func() { done <- a.Add(within(t), one) }()
	f, _ := proxy(t, a)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := uids(f); got != "one" {
		t.Errorf("the proxy serves %q", got)
	}
}

func TestAddIsWithdrawn(t *testing.T) {
	nstest.Require(t)
	nstest.LeakCheck(t)
	a := newAgent(t)
	one, two := pod(t, "one"), pod(t, "two")

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.Add(ctx, one); !errors.Is(err, ErrNoProxy) {
		t.Errorf("without a proxy: %v", err)
	}

	f := NewFakeProxy(a.path)
	hold, held := make(chan struct{}), make(chan struct{})
	f.OnAdd(func(ctx context.Context, uid string, _ Info) error {
		close(held)
		select {
		case <-hold:
		case <-ctx.Done():
		}
		return nil
	})
	start(t, f.Run)
	eventually(t, func() bool { return a.Connected() == 1 })
	if got := uids(f); got != "" {
		t.Errorf("the withdrawn pod reached the proxy: %q", got)
	}
	first := make(chan error, 1)
	go func() { first <- a.Add(within(t), one) }()
	<-held
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.Add(ctx, two); !errors.Is(err, ErrBusy) {
		t.Errorf("behind a slow one: %v", err)
	}
	close(hold)
	if err := <-first; err != nil {
		t.Errorf("the slow one: %v", err)
	}
	if err := a.Del(within(t), "one"); err != nil { // comes after whatever else was queued
		t.Fatal(err)
	}
	if slices.Contains(f.Events(), "add two") {
		t.Error("the withdrawn pod reached the proxy")
	}
}

func TestAckErrorReachesTheCaller(t *testing.T) {
	nstest.Require(t)
	a := newAgent(t)
	f := NewFakeProxy(a.path)
	f.OnAdd(func(context.Context, string, Info) error { return errors.New("port 15001 is taken") })
	start(t, f.Run)
	err := a.Add(within(t), pod(t, "one"))
	var ack *AckError
	if !errors.As(err, &ack) || ack.Text != "port 15001 is taken" {
		t.Fatalf("got %v", err)
	}
	if a.Connected() != 1 {
		t.Error("the connection was dropped for it")
	}
}

func TestAgentRestartKeepsPods(t *testing.T) {
	nstest.Require(t)
	nstest.LeakCheck(t)
	path := filepath.Join(t.TempDir(), "z.sock")
	one := pod(t, "one")
	serve := func(pods ...Workload) func() {
		s := NewServer(path, func() []Workload { return pods }, quiet())
		return start(t, s.Run)
	}
	f := NewFakeProxy(path)
	stop := serve(one, Workload{UID: "other"})
	start(t, f.Run)
	if err := f.Wait(within(t), f.Synced); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := f.Wait(within(t), func() bool { return !f.Synced() }); err != nil {
		t.Fatal(err)
	}
	if got := uids(f); got != "one" {
		t.Errorf("without an agent the proxy serves %q", got)
	}
	serve(Workload{UID: "one"})
	if err := f.Wait(within(t), f.Synced); err != nil {
		t.Fatal(err)
	}
	if got := uids(f); got != "one" {
		t.Errorf("after Keep the proxy serves %q", got)
	}
}

func TestManyAddsOneInFlight(t *testing.T) {
	nstest.Require(t)
	nstest.LeakCheck(t)
	a := newAgent(t)
	f, _ := proxy(t, a)
	ns, _ := nstest.NewNS(t, "shared")
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			uid := fmt.Sprintf("pod-%d", i)
			if err := a.Add(within(t), Workload{UID: uid, NS: ns}); err != nil {
				t.Error(err)
			}
			if i%2 == 1 {
				if err := a.Del(within(t), uid); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(f.Pods()); n != 25 {
		t.Errorf("the proxy serves %d pods, want 25", n)
	}
}

func dialRaw(t *testing.T, path string) *conn {
	t.Helper()
	c, err := net.DialUnix(network, nil, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &conn{UnixConn: c}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
