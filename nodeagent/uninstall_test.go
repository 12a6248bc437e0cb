package nodeagent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

// pristine says whether nothing of ours is in a namespace.
func pristine(t *testing.T, ns *netns.NS) bool {
	t.Helper()
	b, err := redirect.Detect()
	if err != nil {
		t.Fatal(err)
	}
	before, err := b.Verify(ns, redirect.Defaults())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(ns); err != nil {
		t.Fatal(err)
	}
	after, err := b.Verify(ns, redirect.Defaults())
	if err != nil {
		t.Fatal(err)
	}
	return slices.Equal(before, after)
}

// stateFiles are those of the state directory.
func (w *world) stateFiles() (names []string) {
	w.t.Helper()
	err := filepath.WalkDir(w.cfg.StateDir, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, p)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return names
}

// meshed makes a cluster with an agent of a DaemonSet, and a pod in the mesh.
func meshed(t *testing.T) (w *clusterWorld, ns *netns.NS) {
	t.Helper()
	w = newClusterWorld(t, func(c *Config) { c.DaemonSet = "agent" })
	ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: w.cfg.OwnNamespace, Name: "agent"}}
	if err := w.client.Tracker().Add(ds); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Tracker().Add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.proxy()
	w.create(podObject("a", "uid-a"))
	ns, _, err := w.addPod("a", "uid-a", "c1")
	if err != nil {
		t.Fatal(err)
	}
	w.until("marked", func() bool { return w.mark("a") == "enabled" })
	return w, ns
}

// TestUpgrade: the agent ends and another will come.
func TestUpgrade(t *testing.T) {
	nstest.LeakCheck(t)
	w, ns := meshed(t)
	w.carried.Store(3)
	w.stop()
	if w.mark("a") != "enabled" || len(w.stateFiles()) < 2 || pristine(t, ns) {
		t.Errorf("taken away for a successor: mark %q, state %v", w.mark("a"), w.stateFiles())
	}
}

// TestLeave: the agent's DaemonSet is deleted. Nothing stays, and new pods start.
func TestLeave(t *testing.T) {
	nstest.LeakCheck(t)
	w, ns := meshed(t)
	if err := w.client.AppsV1().DaemonSets(w.cfg.OwnNamespace).Delete(t.Context(), "agent", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.stop()
	if w.mark("a") != "" || len(w.stateFiles()) > 0 || !pristine(t, ns) {
		t.Errorf("left: mark %q, state %v", w.mark("a"), w.stateFiles())
	}
}

// TestLeaveLate: the time for the pods is over before they are through. The rest is done,
// and what time is left goes to them.
func TestLeaveLate(t *testing.T) {
	nstest.LeakCheck(t)
	w, ns := meshed(t)
	w.agent.podsWithin = 0
	if err := w.client.AppsV1().DaemonSets(w.cfg.OwnNamespace).Delete(t.Context(), "agent", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.stop()
	if w.mark("a") != "" || len(w.stateFiles()) > 0 || !pristine(t, ns) {
		t.Errorf("left: mark %q, state %v", w.mark("a"), w.stateFiles())
	}
}

// TestPodsHaveWhatIsLeft: the parts of a clean leave take the whole time that the agent has,
// and no more.
func TestPodsHaveWhatIsLeft(t *testing.T) {
	for grace, want := range map[time.Duration]time.Duration{45 * time.Second: 24 * time.Second, 5 * time.Minute: 279 * time.Second, 26 * time.Second: 5 * time.Second, time.Second: 5 * time.Second} {
		c := Config{TerminationGracePeriod: grace}
		if got := c.podsWithin(); got != want || grace >= 26*time.Second && askWithin+hostWithin+got+marksWithin+hostWithin+spareWithin != grace {
			t.Errorf("of %s the pods have %s, want %s", grace, got, want)
		}
	}
}

// TestUninstallByHand: the agent was killed, or has been an upgrade's victim.
func TestUninstallByHand(t *testing.T) {
	nstest.LeakCheck(t)
	w, ns := meshed(t)
	w.stop()
	cfg := w.cfg
	cfg.Kubernetes, cfg.DaemonSet, cfg.KubeDir, cfg.Probes = false, "", w.path("kube"), ProbesAuto
	if err := Uninstall(t.Context(), cfg, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if len(w.stateFiles()) > 0 || !pristine(t, ns) {
		t.Errorf("left: state %v", w.stateFiles())
	}
}

// TestAddWhileLeaving: a pod that comes meanwhile starts outside the mesh.
func TestAddWhileLeaving(t *testing.T) {
	nstest.LeakCheck(t)
	w, _ := meshed(t)
	done := make(chan error, 1)
	go func() { done <- w.agent.enroll.Retire(context.Background(), "the mesh leaves this node") }()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.create(podObject("b", "uid-b"))
	if _, a, err := w.addPod("b", "uid-b", "c2"); err != nil || a.Action != event.Leave || !strings.Contains(a.Reason, "leaves this node") {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestPluginThatStays: where it cannot be taken away it keeps no pod from starting, of
// whatever namespace, and whether or not the agent has ever heard of the cluster.
func TestPluginThatStays(t *testing.T) {
	w := newClusterWorld(t, func(*Config) {})
	a, err := newAgent(w.cfg, w.toServer(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.cfg.StateDir, event.AwayName)
	if err := event.WriteAway(path, event.Away{Namespaces: map[string]string{"meshed": event.NSIn}}); err != nil {
		t.Fatal(err)
	}
	if err := a.openDoors(); err != nil {
		t.Fatal(err)
	}
	left, err := event.ReadAway(path)
	if err != nil || left.Mode("meshed") != event.NSOut || left.Mode("newer") != event.NSOut {
		t.Errorf("%+v, %v", left, err)
	}
}

// TestInstallIsPartOfReadiness, and its files go with the agent.
func TestInstallIsPartOfReadiness(t *testing.T) {
	nstest.LeakCheck(t)
	w := newClusterWorld(t, func(c *Config) { c.InstallCNI, c.OnExit = true, OnExitUninstall })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	conf, bin := w.path("host/etc/cni/net.d"), w.path("host/opt/cni/bin")
	w.cfg.CNI.Plugin, w.cfg.HostRoot = exe, w.path("host")
	for _, dir := range []string{conf, bin} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(bin, "bridge"), []byte("#!"), 0o755); err != nil {
		t.Fatal(err)
	}
	a, err := newAgent(w.cfg, w.toServer(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	w.until("waiting for the primary", func() bool {
		err := a.ready(t.Context())
		return err != nil && strings.Contains(err.Error(), "CNI plugin")
	})
	list := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"net","plugins":[{"type":%q}]}`, "bridge")
	if err := os.WriteFile(filepath.Join(conf, "10-net.conflist"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	w.until("ready", func() bool { return a.ready(t.Context()) == nil })
	out, _ := runStatus(t, "--run-dir", w.cfg.RunDir)
	if !strings.Contains(out, "plugin") || !strings.Contains(out, "installed") {
		t.Errorf("the status says\n%s", out)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(conf, "10-net.conflist")); err != nil || string(b) == "" || strings.Contains(string(b), "warren") {
		t.Errorf("left: %s, %v", b, err)
	}
	if files, err := os.ReadDir(bin); err != nil || len(files) != 1 {
		t.Errorf("left: %v, %v", files, err)
	}
}
