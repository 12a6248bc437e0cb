package nodeagent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/zds"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// world is an agent on a machine of its own, as far as folders make one.
type world struct {
	t    *testing.T
	dir  string
	cfg  Config
	stop func()

	carried atomic.Int32 // connections that the proxy says it has for each pod
}

func newWorld(t *testing.T) *world {
	t.Helper()
	nstest.Require(t)
	_, err := redirect.Detect()
	nstest.Need(t, err)
	w := &world{t: t, dir: t.TempDir(), cfg: Defaults()}
	w.cfg.NodeName, w.cfg.KubeDir, w.cfg.RunDir, w.cfg.StateDir = "n1", w.path("kube"), w.path("run"), w.path("state")
	w.cfg.ZDSSocket, w.cfg.HealthListen, w.cfg.MetricsListen = w.path("run/z.sock"), "127.0.0.1:0", "127.0.0.1:0"
	if err := os.Mkdir(w.cfg.KubeDir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.put("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}\n")
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) put(file, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.cfg.KubeDir, file), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) putPod(name string) {
	w.t.Helper()
	w.put(name+".yaml", fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: app, uid: uid-%s}\nspec: {nodeName: n1, serviceAccountName: sa}\n", name, name))
}

// start returns the addresses of health and metrics.
func (w *world) start() (health, metrics string) {
	w.t.Helper()
	a, err := New(w.cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.Run(ctx); err != nil {
			w.t.Errorf("run: %v", err)
		}
	}()
	w.stop = func() { cancel(); <-done }
	w.t.Cleanup(w.stop)
	n := len(a.http)
	health, metrics = a.http[n-2].listener.Addr().String(), a.http[n-1].listener.Addr().String()
	w.until("ready", func() bool { code, _ := w.get("http://" + health + "/readyz"); return code == http.StatusOK })
	return health, metrics
}

func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("it never was %s", what)
		}
	}
}

func (w *world) client(path string) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: unixTransport(path)}
}

func (w *world) get(url string) (int, string) {
	w.t.Helper()
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// proxy is a fake with an administration socket that says what it serves.
func (w *world) proxy() *zds.FakeProxy {
	w.t.Helper()
	f := zds.NewFakeProxy(w.cfg.ZDSSocket)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f.Run(ctx) }()
	w.t.Cleanup(func() { cancel(); <-done })
	w.until("connected", f.Synced)
	l, err := zds.Listen("unix", w.path("run/"+adminSocket))
	if err != nil {
		w.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pods", func(rw http.ResponseWriter, _ *http.Request) {
		var pods []adminPod
		expires := time.Now().Add(time.Hour)
		for uid := range f.Pods() {
			p := served(uid)
			p.UID, p.Expires, p.Inbound, p.Outbound = uid, &expires, int(w.carried.Load()), 0
			pods = append(pods, p)
		}
		_ = json.NewEncoder(rw).Encode(pods)
	})
	mux.HandleFunc("/debug/connections", func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("connections") != "false" {
			w.t.Error("the proxy is asked for all connections")
		}
		up := adminLine{Address: "https://cp", State: "connected"}
		_ = json.NewEncoder(rw).Encode(map[string]any{"xds": up, "ca": up, "connections": map[string]int{}})
	})
	srv := &http.Server{Handler: mux}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }()
	w.t.Cleanup(func() { srv.Close(); <-served })
	return f
}

func TestAgentFromAddToStatus(t *testing.T) {
	nstest.LeakCheck(t)
	w := newWorld(t)
	_, metrics := w.start()
	w.until("said to lack a proxy", func() bool {
		out, code := runStatus(t, "--run-dir", w.cfg.RunDir)
		return code == exitDegraded && strings.Contains(out, "none is connected")
	})
	f := w.proxy()
	ns, path := nstest.NewNS(t, "c1")
	t.Cleanup(w.stop)
	b, err := redirect.Detect()
	if err != nil {
		t.Fatal(err)
	}
	w.putPod("a")
	c := &event.Client{Path: filepath.Join(w.cfg.RunDir, event.SocketName)}
	key := event.Key{ContainerID: "c1", IfName: "eth0"}
	_, err = c.Add(t.Context(), event.Add{Key: key, Network: "net", PodName: "a", PodNamespace: "app", PodUID: "uid-a", Netns: path}, ns.File(),
		func(event.Redirect) (string, error) { return event.ByAgent, nil })
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Pods()) != 1 {
		t.Errorf("the proxy serves %v", f.Pods())
	}
	out, code := runStatus(t, "--run-dir", w.cfg.RunDir, "-o", "wide")
	if code != 0 || !strings.Contains(out, "verified") || !strings.Contains(out, "15001,15006,15008") {
		t.Errorf("exit status %d\n%s", code, out)
	}
	if err := b.StopCapture(ns); err != nil {
		t.Fatal(err)
	}
	w.until("said to differ", func() bool {
		out, code := runStatus(t, "--run-dir", w.cfg.RunDir)
		if code == exitDegraded && strings.Contains(out, "differs") {
			return true
		}
		if err := b.StopCapture(ns); err != nil { // the agent was quicker and has put the rules back
			t.Fatal(err)
		}
		return false
	})
	if code, text := w.get("http://" + metrics + "/metrics"); code != http.StatusOK || !strings.Contains(text, `nodeagent_reconcile_events_total{result="ok",type="add"} 1`) ||
		!strings.Contains(text, "ztunnel_connected 1") || !strings.Contains(text, `warren_agent_pods{phase="enrolled"} 1`) {
		t.Errorf("metrics: %d\n%s", code, text)
	}
	w.put("bad.yaml", "kind: [")
	w.until("said to have a bad file", func() bool {
		out, code := runStatus(t, "--run-dir", w.cfg.RunDir)
		return code == exitDegraded && strings.Contains(out, "bad.yaml")
	})
	if err := c.Del(t.Context(), key, "uid-a"); err != nil || len(f.Pods()) > 0 {
		t.Errorf("after DEL: %v, %v", f.Pods(), err)
	}
}

func TestIstiosPluginOverHTTP(t *testing.T) {
	nstest.LeakCheck(t)
	w := newWorld(t)
	w.start()
	f := w.proxy()
	w.putPod("a")
	_, path := nstest.NewNS(t, "c1")
	t.Cleanup(w.stop)
	client := w.client(filepath.Join(w.cfg.RunDir, pluginSocket))
	for _, c := range []struct {
		body string
		code int
		text string
	}{
		{fmt.Sprintf(`{"Netns":%q,"PodName":"a","PodNamespace":"app","IPs":[{"Interface":1,"Address":{"IP":"10.1.0.3","Mask":"////AA=="},"Gateway":"10.1.0.1"}]}`, path), http.StatusOK, ""},
		{"", http.StatusBadRequest, "unexpected end of JSON input"},
		{`{"Netns":"/nowhere","PodName":"a","PodNamespace":"app"}`, http.StatusInternalServerError, "/nowhere"},
		{`{"Netns":"/nowhere","PodName":"ghost","PodNamespace":"app"}`, http.StatusInternalServerError, "knows no pod app/ghost"},
		{strings.Repeat(" ", maxIstioBody+1), http.StatusBadRequest, "more than"},
	} {
		began := time.Now()
		resp, err := client.Post("http://unix/cmdadd", "application/json", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.code || !bytes.Contains(b, []byte(c.text)) || (c.text == "") != (len(b) == 0) {
			t.Errorf("%.60s: %d %q, %v", c.body, resp.StatusCode, b, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%.60s: answered after %s, when the plugin has given up", c.body, took)
		}
	}
	if len(f.Pods()) != 1 {
		t.Errorf("the proxy serves %v", f.Pods())
	}
}

// TestJunk talks nonsense to every socket; after that everything still works.
func TestJunk(t *testing.T) {
	nstest.LeakCheck(t)
	w := newWorld(t)
	w.start()
	junk := []string{"", "\x00", "GET / HTTP/1.1\r\n\r\n", "\xff\xff\xff\xff", strings.Repeat("A", 100_000), `{"version":1,"kind":"add"}`}
	for name, network := range map[string]string{
		event.SocketName: "unixpacket", "z.sock": "unixpacket", statusSocket: "unix", pluginSocket: "unix",
	} {
		for _, j := range junk {
			c, err := net.Dial(network, filepath.Join(w.cfg.RunDir, name))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			_, _ = io.WriteString(c, j) // it may be refused
			c.Close()
		}
	}
	w.proxy()
	if out, code := runStatus(t, "--run-dir", w.cfg.RunDir); code != 0 {
		t.Errorf("after junk: exit status %d\n%s", code, out)
	}
}

func TestSecondAgentIsRefused(t *testing.T) {
	nstest.LeakCheck(t)
	w := newWorld(t)
	w.start()
	cfg := w.cfg
	cfg.RunDir, cfg.StateDir = w.path("run2"), w.path("state2")
	if a, err := New(cfg, slog.New(slog.NewTextHandler(io.Discard, nil))); err == nil {
		a.close()
		t.Error("two agents serve one proxy")
	} else if !strings.Contains(err.Error(), "another process") {
		t.Error(err)
	}
}

func TestNewUndoesWhatItOpened(t *testing.T) {
	nstest.LeakCheck(t)
	w := newWorld(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	w.cfg.MetricsListen = busy.Addr().String()
	if a, err := New(w.cfg, slog.New(slog.NewTextHandler(io.Discard, nil))); err == nil {
		a.close()
		t.Error("no error")
	}
	for _, name := range []string{"z.sock", statusSocket, pluginSocket} {
		if _, err := os.Lstat(filepath.Join(w.cfg.RunDir, name)); err == nil {
			t.Errorf("%s was left", name)
		}
	}
}

var _ enroll.Flows = (*proxyAdmin)(nil)

// TestStaleAdminSocket: a proxy of ours was killed, and one without an
// administration socket has taken its place.
func TestStaleAdminSocket(t *testing.T) {
	nstest.LeakCheck(t)
	path := filepath.Join(t.TempDir(), adminSocket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	p := newProxyAdmin(filepath.Join(filepath.Dir(path), "z.sock"))
	if _, err := p.pods(t.Context()); !errors.Is(err, errNoAdmin) {
		t.Errorf("of a dead socket: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := p.lines(t.Context()); !errors.Is(err, errNoAdmin) {
		t.Errorf("of none: %v", err)
	}
}
