package nodeagent

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/podns"
	"github.com/warren-mesh/warren/nodeagent/zds"
)

// TestDeniedConnectionsEnd: the question reaches the proxy as it understands it, what it
// denies is ended in the kernel, and the rest goes on.
func TestDeniedConnectionsEnd(t *testing.T) {
	nstest.LeakCheck(t)
	node := nstest.New(t).Node("n")
	client, server := node.Pod("client"), node.Pod("server")
	conns := make(map[uint16]net.Conn) // the client's ends, by the server's port
	for _, port := range []string{"8080", "9090"} {
		l, err := server.Listen("tcp4", "0.0.0.0:"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := client.Dial(t.Context(), "tcp4", net.JoinHostPort(server.IP4.String(), port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		conns[netip.MustParseAddrPort(c.RemoteAddr().String()).Port()] = c
	}

	dir := t.TempDir()
	l, err := zds.Listen("unix", filepath.Join(dir, adminSocket))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var asked []struct{ Src, Dst netip.AddrPort }
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || r.URL.Query().Get("pod") != "uid-s" || len(asked) != 2 {
			t.Errorf("asked %s: %v, %v", r.URL, asked, err)
		}
		reasons := make([]string, len(asked))
		for i, c := range asked {
			if c.Src.Addr() != client.IP4 || c.Dst.Addr() != server.IP4 {
				t.Errorf("asked about %+v", c)
			}
			if c.Dst.Port() == 8080 {
				reasons[i] = "explicitly denied by: istio-system/istio_converted_static_strict"
			}
		}
		_ = json.NewEncoder(w).Encode(reasons)
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }()
	defer func() { srv.Close(); <-served }()

	all, more, err := connections{}.List(server.NS)
	if err != nil || more != 0 || len(all) != 2 || !all[0].Inbound || !all[1].Inbound {
		t.Fatalf("connections %+v, %d more, %v", all, more, err)
	}
	denied, err := newProxyAdmin(filepath.Join(dir, "z.sock")).Denied(t.Context(), "uid-s", all)
	if err != nil || len(denied) != 1 || denied[0].Local.Port() != 8080 {
		t.Fatalf("denied %+v, %v", denied, err)
	}
	left, err := connections{}.End(server.NS, denied)
	if errors.Is(err, podns.ErrCannotEnd) {
		nstest.Need(t, err)
	}
	if err != nil || len(left) > 0 {
		t.Fatalf("left %+v, %v", left, err)
	}
	read := func(port uint16, d time.Duration) error {
		if err := conns[port].SetReadDeadline(time.Now().Add(d)); err != nil {
			t.Fatal(err)
		}
		_, err := conns[port].Read(make([]byte, 1))
		return err
	}
	if err := read(8080, 10*time.Second); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the one that is denied: %v", err)
	}
	var timeout net.Error
	if err := read(9090, 50*time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("the other one: %v", err)
	}
	if alive, err := (connections{}).Alive(server.NS, all); err != nil || len(alive) != 1 {
		t.Errorf("alive %+v, %v", alive, err)
	}
}

// TestFoundPathsAreTheHosts: what podns has seen below the agent's view of the host's
// /proc is a path of the host's to enroll.
func TestFoundPathsAreTheHosts(t *testing.T) {
	nstest.LeakCheck(t)
	if got := procOf("/"); got != "/proc" {
		t.Errorf("on the host itself: %s", got)
	}
	if got := procOf(t.TempDir()); got != "/proc" {
		t.Errorf("with the host's processes and no /proc below its root: %s", got)
	}
}

// TestFlowsAreAskedForOnce: many pods that leave are one question to the proxy.
func TestFlowsAreAskedForOnce(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, adminSocket))
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	all := make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		<-all
		_ = json.NewEncoder(w).Encode([]adminPod{{UID: "a", Inbound: 1, Outbound: 2}, {UID: "b"}})
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }()
	defer func() { srv.Close(); <-served }()
	p := newProxyAdmin(filepath.Join(dir, "z.sock"))
	var began, done sync.WaitGroup
	for i := range 200 {
		began.Add(1)
		done.Go(func() {
			uid, want := "a", 3
			if i%2 > 0 {
				uid, want = "b", 0
			}
			began.Done()
			if n, err := p.Flows(t.Context(), uid, time.Time{}); err != nil || n != want {
				t.Errorf("%s carries %d, %v", uid, n, err)
			}
		})
	}
	began.Wait()
	close(all)
	done.Wait()
	if n := asked.Load(); n > 20 { // one, but for a machine that stands still
		t.Errorf("asked %d times", n)
	}
	if _, err := p.Flows(t.Context(), "gone", time.Time{}); err == nil {
		t.Error("a pod that the proxy does not serve has a number")
	}
}

// TestFlowsOfLater: an answer that was asked for before a pod's capture stopped does not
// tell what the proxy has taken for it meanwhile, whether it is there or on its way.
func TestFlowsOfLater(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, adminSocket))
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	arrived, answer := make(chan struct{}), make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := asked.Add(1)
		if n == 1 { // nothing yet, and slowly
			close(arrived)
			<-answer
		}
		_ = json.NewEncoder(w).Encode([]adminPod{{UID: "a", Inbound: int(n - 1)}})
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }()
	defer func() { srv.Close(); <-served }()
	p := newProxyAdmin(filepath.Join(dir, "z.sock"))
	p.client.Timeout = time.Minute
	p.serves = func(time.Duration) time.Duration { return time.Hour } // so that age is no reason
	var done sync.WaitGroup
	ask := func(since time.Time, want int) {
		if n, err := p.Flows(t.Context(), "a", since); err != nil || n != want {
			t.Errorf("%d connections, %v; want %d", n, err, want)
		}
	}
	done.Go(func() { ask(time.Time{}, 0) })
	<-arrived
	stopped := time.Now() // of another pod; the proxy has a connection for it by now
	done.Go(func() { ask(stopped, 1) })
	done.Go(func() { ask(stopped, 1) })
	close(answer)
	done.Wait()
	ask(stopped, 1)
	ask(time.Now(), 2)
	if n := asked.Load(); n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
}
