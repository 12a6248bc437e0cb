package controlplane

import (
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	caserver "github.com/warren-mesh/warren/ca/server"
	"github.com/warren-mesh/warren/xds/server"
	"github.com/warren-mesh/warren/xds/translate"
)

// Requests for pods that are not there wait a moment and give their place back; a pod that comes in that moment is
// found. One that leaves, finishes or moves is refused from then on.
func TestAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(translate.Options{AssumeRedirected: true}, func(*server.Snapshot) {}, slog.New(slog.DiscardHandler))
		id := spiffeid.RequireFromString("spiffe://cluster.local/ns/app/sa/default")
		pod := func(node string, phase corev1.PodPhase) translate.Objects {
			return translate.Objects{Pods: []*corev1.Pod{{
				ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "p", Labels: map[string]string{translate.LabelDataplaneMode: "ambient"}},
				Spec:       corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase},
			}}}
		}
		update := func(o translate.Objects) {
			if err := m.update(o); err != nil {
				t.Fatal(err)
			}
		}
		update(translate.Objects{})
		var wg sync.WaitGroup
		for range 2 * maxPatient {
			wg.Go(func() {
				if err := m.Allowed(caserver.Caller{Node: "n1"}, id); err == nil {
					t.Error("allowed without a pod")
				}
			})
		}
		wg.Wait()
		wg.Go(func() {
			if err := m.Allowed(caserver.Caller{Node: "n1"}, id); err != nil {
				t.Errorf("the pod came in time: %v", err)
			}
		})
		time.Sleep(patience / 2)
		update(pod("n1", corev1.PodPending))
		wg.Wait()
		for _, c := range []struct {
			name    string
			objects translate.Objects
			caller  caserver.Caller
			ok      bool
		}{
			{"runs", pod("n1", corev1.PodRunning), caserver.Caller{Node: "n1"}, true},
			{"asked by another node", pod("n1", corev1.PodRunning), caserver.Caller{Node: "n2"}, false},
			{"asked by no node", pod("", corev1.PodRunning), caserver.Caller{Identity: id}, false},
			{"moved", pod("n2", corev1.PodRunning), caserver.Caller{Node: "n1"}, false},
			{"finished", pod("n1", corev1.PodSucceeded), caserver.Caller{Node: "n1"}, false},
			{"failed", pod("n1", corev1.PodFailed), caserver.Caller{Node: "n1"}, false},
			{"gone", translate.Objects{}, caserver.Caller{Node: "n1"}, false},
		} {
			update(c.objects)
			if err := m.Allowed(c.caller, id); (err == nil) != c.ok {
				t.Errorf("%s: %v, want allowed %v", c.name, err, c.ok)
			}
		}
	})
}

// Whoever may not read the mesh cannot connect to the Unix socket.
func TestUnixSocketIsOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "xds.sock")
	for range 2 { // the second finds the first's socket
		l, err := listenOn("unix://" + path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != fs.ModeSocket|0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		if u, ok := l.(interface{ SetUnlinkOnClose(bool) }); ok {
			u.SetUnlinkOnClose(false)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenOn("unix://" + path); err == nil {
		t.Error("a file that is no socket was replaced")
	}
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "precious") {
		t.Errorf("file %q, %v", text, err)
	}
}

// A control plane that starts beside a broken file tells proxies nothing: what it lacks may be the policy that the file
// held before, and they would drop it. It goes on signing, and says what is in the way.
func TestStartBesideABrokenFile(t *testing.T) {
	p := start(t, func(c *Config) {
		for name, text := range map[string]string{"mesh.yaml": meshYAML, "policy.yaml": policyYAML + "  broken: [\n"} {
			if err := os.WriteFile(filepath.Join(c.KubeDir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	})
	cc := p.dial()
	c := subscribe(t, cc, p.as(tokenA))
	if _, err := sign(t, cc, p.as(tokenA), "spiffe://cluster.local/ns/app/sa/web"); err != nil {
		t.Fatal(err)
	}
	if code, body := get(t, "http://"+p.cp.listeners.health.Addr().String()+"/ready"); code != http.StatusServiceUnavailable || !strings.Contains(body, "policy.yaml: not taken") {
		t.Errorf("ready = %d %q", code, body)
	}
	for typ, n := range p.cp.ads.Stats().Sent {
		if n > 0 {
			t.Errorf("%d responses about %s", n, typ)
		}
	}
	p.write("policy.yaml", policyYAML)
	c.until(webWorkload, webService, "app/deny")
	if code, body := get(t, "http://"+p.cp.listeners.health.Addr().String()+"/ready"); code != http.StatusOK {
		t.Errorf("ready = %d %q", code, body)
	}
	p.write("another.yaml", "broken: [") // nothing is known to be missing for it
	p.write("policy.yaml", "# none any more\n")
	c.until(webWorkload, webService)
}

// The log is told of each problem once, of some at a time, and of none never; and many
// problems, which anybody's objects can have, hold up the mesh for no time that is felt:
// comparing each with each would take minutes for these.
func TestComplaints(t *testing.T) {
	var log strings.Builder
	m := newModel(translate.Options{}, func(*server.Snapshot) {}, slog.New(slog.NewTextHandler(&log, nil)))
	list := make([]translate.Problem, 250)
	for i := range list {
		list[i] = translate.Problem{Kind: "ServiceEntry", Namespace: "app", Name: "e", Field: strconv.Itoa(i), Reason: "bad"}
	}
	lines := func() int {
		defer log.Reset()
		return strings.Count(log.String(), "not translated as written")
	}
	for i, want := range []int{100, 100, 50, 0, 0} {
		if m.complain(list); lines() != want {
			t.Errorf("change %d: not %d lines", i, want)
		}
	}
	m.complain(nil)
	if m.complain(list[:3]); lines() != 3 {
		t.Error("what was wrong before and is again is not told")
	}

	m = newModel(translate.Options{}, func(*server.Snapshot) {}, slog.New(slog.DiscardHandler))
	list = make([]translate.Problem, 300_000)
	for i := range list {
		list[i] = translate.Problem{Kind: "ServiceEntry", Namespace: "app", Name: "e", Field: strconv.Itoa(i), Reason: "bad"}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 {
			m.complain(list)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("a change is held up")
	}
}
