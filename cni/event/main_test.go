package event

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// patience is for what should happen at once.
const patience = 10 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// serve runs a server with changed limits until the test ends.
func serve(t testing.TB, h Handler, change func(*limits)) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), SocketName)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{limits: defaultLimits(), h: h, log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&s.limits)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return &Client{Path: path}
}

func testAdd() Add {
	return Add{
		Key: Key{ContainerID: "c1", IfName: "eth0"}, Network: "net", PodName: "a-1", PodNamespace: "app",
		PodUID: "11111111-2222-3333-4444-555555555555", Netns: "/var/run/netns/x",
	}
}

// podNS is a namespace to pass over the socket.
func podNS(t testing.TB) *os.File {
	t.Helper()
	ns, _ := nstest.NewNS(t, "pod")
	return ns.File()
}

func redirectAll(context.Context, Add, *netns.NS) (Answer, error) {
	return Answer{Action: RedirectSo, Redirect: &Redirect{IPv6: true, VirtualInterfaces: []string{"vnet0"}}, Reason: "test"}, nil
}

// eventually waits for what nothing announces.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

func verbs(f *Fake) (vs []string) {
	for _, c := range f.Calls() {
		vs = append(vs, c.Verb)
	}
	return vs
}
