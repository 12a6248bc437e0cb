package event

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

func byPlugin(Redirect) (string, error) { return ByPlugin, nil }

func never(Redirect) (string, error) { panic("called") }

func TestAdd(t *testing.T) {
	nstest.LeakCheck(t)
	ns, _ := nstest.NewNS(t, "pod")
	for _, tc := range []struct {
		name    string
		fake    *Fake
		program func(Redirect) (string, error)
		action  string
		wantErr string
		verbs   []string
	}{
		{"left alone", &Fake{}, never, Leave, "", []string{"Add"}},
		{"by the plugin", &Fake{OnAdd: redirectAll}, byPlugin, RedirectSo, "", []string{"Add", "Programmed"}},
		{
			"by the agent", &Fake{OnAdd: redirectAll}, func(Redirect) (string, error) { return ByAgent, nil },
			RedirectSo, "", []string{"Add", "Programmed"},
		},
		{
			"the plugin cannot", &Fake{OnAdd: redirectAll}, func(Redirect) (string, error) { return "", errors.New("no iptables") },
			RedirectSo, "no iptables", []string{"Add", "Abort"},
		},
		{
			"refused", &Fake{OnAdd: func(context.Context, Add, *netns.NS) (Answer, error) {
				return Answer{}, fmt.Errorf("wrapped: %w", &Error{Retryable: true, Msg: "not yet", Details: "wait"})
			}}, never, "", "not yet; wait", []string{"Add"},
		},
		{
			"refused after programming", &Fake{OnAdd: redirectAll, OnProgrammed: func(context.Context, string) error { return errors.New("no proxy") }},
			byPlugin, RedirectSo, "no proxy", []string{"Add", "Programmed"},
		},
		{
			"an answer without its redirect", &Fake{OnAdd: func(context.Context, Add, *netns.NS) (Answer, error) {
				return Answer{Action: RedirectSo}, nil
			}}, never, "", "belong together", []string{"Add", "Abort"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nstest.LeakCheck(t)
			c := serve(t, tc.fake, nil)
			answer, err := c.Add(testContext(t), testAdd(), ns.File(), tc.program)
			if answer.Action != tc.action {
				t.Errorf("action %q, want %q", answer.Action, tc.action)
			}
			if tc.wantErr == "" && err != nil || tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Errorf("error %v, want %q", err, tc.wantErr)
			}
			if errors.Is(err, ErrAway) || errors.Is(err, ErrLost) {
				t.Errorf("%v: the agent was there", err)
			}
			eventually(t, "the agent is done", func() bool { return len(verbs(tc.fake)) >= len(tc.verbs) })
			if diff := cmp.Diff(tc.verbs, verbs(tc.fake)); diff != "" {
				t.Errorf("agent (-want +got):\n%s", diff)
			}
			first := tc.fake.Calls()[0]
			want := testAdd()
			want.Version = Version
			if diff := cmp.Diff(want, first.Add); diff != "" {
				t.Errorf("add (-want +got):\n%s", diff)
			}
			if first.NS != ns.ID() {
				t.Errorf("namespace %s, want %s", first.NS, ns.ID())
			}
		})
	}
}

func TestOtherRequests(t *testing.T) {
	nstest.LeakCheck(t)
	f := &Fake{
		OnCheck: func(k Key) (Answer, error) {
			if k.ContainerID == "gone" {
				return Answer{}, &Error{Msg: "unknown"}
			}
			return Answer{Action: RedirectSo, Redirect: &Redirect{DNS: true}}, nil
		},
	}
	c := serve(t, f, nil)
	ctx := testContext(t)
	key := Key{"c1", "eth0"}
	var valid []Key
	for i := range 2000 { // several packets
		valid = append(valid, Key{fmt.Sprintf("%064d", i), "eth0"})
	}
	if err := errors.Join(c.Del(ctx, key, "uid"), c.GC(ctx, "net", valid), c.GC(ctx, "net", nil), c.Status(ctx)); err != nil {
		t.Fatal(err)
	}
	if a, err := c.Check(ctx, key); err != nil || !a.Redirect.DNS {
		t.Errorf("check: %+v, %v", a, err)
	}
	var refusal *Error
	if _, err := c.Check(ctx, Key{"gone", "eth0"}); !errors.As(err, &refusal) || refusal.Retryable {
		t.Errorf("check: %v", err)
	}
	calls := f.Calls()
	if want := []string{"Del", "GC", "GC", "Status", "Check", "Check"}; !slices.Equal(verbs(f), want) {
		t.Fatalf("agent was asked %v, want %v", verbs(f), want)
	}
	if calls[0].Key != key || calls[0].PodUID != "uid" {
		t.Errorf("del: %+v", calls[0])
	}
	if !slices.Equal(calls[1].Valid, valid) || calls[1].Network != "net" || len(calls[2].Valid) != 0 {
		t.Errorf("gc: %d valid attachments of %s, want %d", len(calls[1].Valid), calls[1].Network, len(valid))
	}
}

// What the plugin may not send, it does not send: the agent is not asked.
func TestClientRefusesNonsense(t *testing.T) {
	f := &Fake{}
	c := serve(t, f, nil)
	bad := testAdd()
	bad.PodName = "a b"
	if _, err := c.Add(testContext(t), bad, podNS(t), never); err == nil || errors.Is(err, ErrAway) {
		t.Errorf("error %v", err)
	}
	if err := c.GC(testContext(t), "net", make([]Key, maxValid+1)); err == nil || errors.Is(err, ErrAway) {
		t.Errorf("error %v", err)
	}
	if n := len(f.Calls()); n > 0 {
		t.Errorf("the agent was asked %d times", n)
	}
}

// stuck is an agent whose work ends only with its context.
func stuck(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestAgentOutOfTime(t *testing.T) {
	nstest.LeakCheck(t)
	short := func(l *limits) { l.answer = 20 * time.Millisecond }
	for name, f := range map[string]*Fake{
		"deciding":   {OnAdd: func(ctx context.Context, _ Add, _ *netns.NS) (Answer, error) { return Answer{}, stuck(ctx) }},
		"programmed": {OnAdd: redirectAll, OnProgrammed: func(ctx context.Context, _ string) error { return stuck(ctx) }},
	} {
		c := serve(t, f, short)
		var refusal *Error
		if _, err := c.Add(testContext(t), testAdd(), podNS(t), byPlugin); !errors.As(err, &refusal) || !refusal.Retryable || refusal.Details == "" {
			t.Errorf("%s: error %v, want a retryable one that says what to do", name, err)
		}
	}
}

// A plugin that takes too long to program is not waited for.
func TestPluginOutOfTime(t *testing.T) {
	nstest.LeakCheck(t)
	f := &Fake{OnAdd: redirectAll}
	c := serve(t, f, func(l *limits) { l.total = 20 * time.Millisecond })
	_, err := c.Add(testContext(t), testAdd(), podNS(t), func(Redirect) (string, error) {
		eventually(t, "the agent aborts", func() bool { return slices.Contains(verbs(f), "Abort") })
		return ByPlugin, nil
	})
	var refusal *Error
	if !errors.As(err, &refusal) || !refusal.Retryable {
		t.Errorf("error %v, want the agent's reason", err)
	}
}

func TestServeStops(t *testing.T) {
	nstest.LeakCheck(t)
	path := filepath.Join(t.TempDir(), SocketName)
	ctx, cancel := context.WithCancel(context.Background())
	f := &Fake{OnAdd: func(ctx context.Context, _ Add, _ *netns.NS) (Answer, error) {
		cancel()
		return Answer{}, stuck(ctx)
	}}
	ready, ended := make(chan struct{}), make(chan error)
	go func() { ended <- f.Run(ctx, path, ready) }()
	<-ready
	c := &Client{Path: path}
	var refusal *Error
	if _, err := c.Add(testContext(t), testAdd(), podNS(t), never); !errors.As(err, &refusal) || !refusal.Retryable {
		t.Errorf("error %v, want a retryable one", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := c.Status(testContext(t)); !errors.Is(err, ErrAway) {
		t.Errorf("error %v, want %v", err, ErrAway)
	}
}

// The plugin dies at each point of an ADD. Whatever the agent did is undone.
func TestPluginDies(t *testing.T) {
	nstest.LeakCheck(t)
	ns := podNS(t)
	t.Run("while the agent decides", func(t *testing.T) {
		causes := make(chan error, 1)
		f := &Fake{OnAdd: func(ctx context.Context, _ Add, _ *netns.NS) (Answer, error) {
			err := stuck(ctx)
			causes <- context.Cause(ctx)
			return Answer{}, err
		}}
		c := dialAdd(t, serve(t, f, nil), ns)
		c.c.Close()
		if err := <-causes; !errors.Is(err, errPluginGone) {
			t.Errorf("cause %v", err)
		}
	})
	t.Run("while it programs", func(t *testing.T) {
		f := &Fake{OnAdd: redirectAll}
		c := dialAdd(t, serve(t, f, nil), ns)
		if _, err := c.answer(testContext(t)); err != nil {
			t.Fatal(err)
		}
		c.c.Close()
		wantAbort(t, f, "Add", "Abort")
	})
	t.Run("while the agent waits for the proxy", func(t *testing.T) {
		causes := make(chan error, 1)
		f := &Fake{OnAdd: redirectAll, OnProgrammed: func(ctx context.Context, _ string) error {
			err := stuck(ctx)
			causes <- context.Cause(ctx)
			return err
		}}
		c := dialAdd(t, serve(t, f, nil), ns)
		programmed(t, c)
		c.c.Close()
		if err := <-causes; !errors.Is(err, errPluginGone) {
			t.Errorf("cause %v", err)
		}
	})
	t.Run("before it hears that it is done", func(t *testing.T) {
		f := &Fake{OnAdd: redirectAll}
		c := dialAdd(t, serve(t, f, nil), ns)
		programmed(t, c)
		waitReadable(t, c) // done is there, unread
		c.c.Close()
		wantAbort(t, f, "Add", "Programmed", "Abort")
	})
	t.Run("after that", func(t *testing.T) {
		f := &Fake{OnAdd: redirectAll}
		t.Cleanup(func() { // after the server's end
			if slices.Contains(verbs(f), "Abort") {
				t.Error("aborted")
			}
		})
		c := dialAdd(t, serve(t, f, nil), ns)
		programmed(t, c)
		if err := c.done(testContext(t)); err != nil {
			t.Fatal(err)
		}
		c.c.Close()
	})
}

// dialAdd begins an ADD by hand.
func dialAdd(t *testing.T, c *Client, ns *os.File) conn {
	t.Helper()
	add := testAdd()
	uc, err := c.dial(testContext(t), message{Kind: kindAdd, Add: &add}, ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { uc.c.Close() })
	return uc
}

func programmed(t *testing.T, c conn) {
	t.Helper()
	if _, err := c.answer(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := c.send(testContext(t), message{Version: Version, Kind: kindProgrammed, How: ByPlugin}, nil); err != nil {
		t.Fatal(err)
	}
}

// waitReadable waits for a packet without taking it.
func waitReadable(t *testing.T, c conn) {
	t.Helper()
	raw, err := c.c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	c.c.SetReadDeadline(time.Now().Add(patience))
	if err := raw.Read(func(fd uintptr) bool { return peek(int(fd)) }); err != nil {
		t.Fatal(err)
	}
}

func wantAbort(t *testing.T, f *Fake, want ...string) {
	t.Helper()
	eventually(t, "the agent aborts", func() bool { return slices.Contains(verbs(f), "Abort") })
	if diff := cmp.Diff(want, verbs(f)); diff != "" {
		t.Errorf("agent (-want +got):\n%s", diff)
	}
	calls := f.Calls()
	if err := calls[len(calls)-1].Reason; !errors.Is(err, errPluginGone) {
		t.Errorf("reason %v, want %v", err, errPluginGone)
	}
}

// Many plugins at once, and more than there are slots.
func TestConcurrentAdds(t *testing.T) {
	nstest.LeakCheck(t)
	ns := podNS(t)
	var mu sync.Mutex
	now, most := 0, 0
	f := &Fake{OnAdd: redirectAll, OnProgrammed: func(context.Context, string) error {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		time.Sleep(time.Millisecond) // work
		mu.Lock()
		now--
		mu.Unlock()
		return nil
	}}
	c := serve(t, f, func(l *limits) { l.conversations = 3 })
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := c.Add(testContext(t), testAdd(), ns, byPlugin); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if most > 3 {
		t.Errorf("%d conversations at once, 3 are allowed", most)
	}
}

func TestListen(t *testing.T) {
	nstest.LeakCheck(t)
	dir := t.TempDir()
	path := filepath.Join(dir, SocketName)
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := Listen(path) // a successor, with the first still there
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	first.Close() // must not take the successor's file
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Fatalf("%v, %v; want a socket of mode 0600", info, err)
	}
	accepted := make(chan error, 1)
	go func() {
		c, err := second.Accept()
		if err == nil {
			c.Close()
		}
		accepted <- err
	}()
	c, err := net.Dial("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := <-accepted; err != nil {
		t.Error(err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("left in the directory: %v", names)
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 100))); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("error %v", err)
	}
	if _, err := Listen(filepath.Join(dir, "none", "x")); err == nil {
		t.Error("listens in a directory that is not there")
	}
}
