package nstest_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// echo serves one connection and says who it was from.
func echo(t *testing.T, l net.Listener) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String())
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

func TestPodsReachEachOther(t *testing.T) {
	nstest.LeakCheck(t)
	n := nstest.New(t)
	n1, n2 := n.Node("n1"), n.Node("n2")
	a, b, c := n1.Pod("a"), n1.Pod("b"), n2.Pod("c")

	tests := []struct {
		name     string
		from, to *nstest.Pod
		src, dst netip.Addr
	}{
		{"one node, v4", a, b, a.IP4, b.IP4},
		{"one node, v6", a, b, a.IP6, b.IP6},
		{"across nodes, v4", a, c, a.IP4, c.IP4},
		{"across nodes, v6", c, a, c.IP6, a.IP6},
		{"itself", a, a, a.IP4, a.IP4},
		{"loopback", a, a, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.1")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := tt.to.Listen("tcp", netip.AddrPortFrom(tt.dst, 0).String())
			if err != nil {
				t.Fatal(err)
			}
			echo(t, l)
			conn, err := tt.from.Dial(context.Background(), "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			got, err := io.ReadAll(conn)
			if err != nil || string(got) != tt.src.String() {
				t.Errorf("seen from %q, %v; want %s", got, err, tt.src)
			}
		})
	}
}

func TestPodOptions(t *testing.T) {
	node := nstest.New(t).Node("n")
	only4, only6 := node.Pod("only4", nstest.NoIPv6()), node.Pod("only6", nstest.NoIPv4())
	if only4.IP6.IsValid() || only6.IP4.IsValid() {
		t.Errorf("addresses that the pods must not have: %v, %v", only4.IP6, only6.IP4)
	}
	if l, err := only4.Listen("tcp", "[::1]:0"); err == nil {
		l.Close()
		t.Error("IPv6 works in a pod made with NoIPv6")
	}
	l, err := only6.Listen("tcp", netip.AddrPortFrom(only6.IP6, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestPathNamesTheNamespace(t *testing.T) {
	pod := nstest.New(t).Node("n").Pod("p")
	ns, err := netns.Open(pod.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if ns.ID() != pod.NS.ID() {
		t.Errorf("%s is %s, the pod is %s", pod.Path, ns.ID(), pod.NS.ID())
	}
}

// recorder is a test whose failures are looked at instead of failing.
type recorder struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (r *recorder) Cleanup(f func())          { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(f string, _ ...any) { r.errors = append(r.errors, f) }
func (r *recorder) end() (failed string) {
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
	return strings.Join(r.errors, "\n")
}

// sink keeps the compiler from leaving an allocation out.
var sink []byte

func TestChecksCanFail(t *testing.T) {
	nstest.Require(t)
	tests := []struct {
		name string
		leak func(t *testing.T, r *recorder) (undo func())
		want string
	}{
		{"nothing", func(*testing.T, *recorder) func() { return func() {} }, ""},
		{"file", func(t *testing.T, r *recorder) func() {
			nstest.ShortLeakCheck(r)
			f, err := os.Open("/")
			if err != nil {
				t.Fatal(err)
			}
			return func() { f.Close() }
		}, "open files left"},
		{"goroutine", func(_ *testing.T, r *recorder) func() {
			nstest.ShortLeakCheck(r)
			stop := make(chan struct{})
			go func() { <-stop }()
			return func() { close(stop) }
		}, "goroutines left"},
		{"file that nobody holds", func(t *testing.T, r *recorder) func() {
			nstest.ShortLeakCheck(r)
			if _, err := os.Open("/"); err != nil {
				t.Fatal(err)
			}
			for range 100 { // enough garbage for a collection
				sink = make([]byte, 1<<20)
			}
			return func() { runtime.GC() }
		}, "open files left"},
		{"threads", func(t *testing.T, r *recorder) func() {
			nstest.ShortLeakCheck(r)
			stop := make(chan struct{})
			var locked, ended sync.WaitGroup
			for range 40 {
				locked.Add(1)
				ended.Go(func() {
					runtime.LockOSThread()
					defer runtime.UnlockOSThread()
					locked.Done()
					<-stop
				})
			}
			locked.Wait()
			return func() { close(stop); ended.Wait() }
		}, "threads, %d at the start"},
		{"socket in a namespace", func(t *testing.T, r *recorder) func() {
			ns, _ := nstest.ShortNS(r, "x")
			var l net.Listener
			err := ns.Do(func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err })
			if err != nil {
				t.Fatal(err)
			}
			return func() { l.Close() }
		}, "still held"},
		{"open namespace", func(t *testing.T, r *recorder) func() {
			ns, _ := nstest.ShortNS(r, "x")
			dup, err := ns.Dup()
			if err != nil {
				t.Fatal(err)
			}
			return func() { dup.Close() }
		}, "still held"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &recorder{TB: t}
			undo := tt.leak(t, r)
			defer undo()
			got := r.end()
			if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("reported %q, want %q in it", got, tt.want)
			}
		})
	}
}
