package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
)

// ca runs `controlplane ca`.
func ca(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := CACommand()
	var out bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// A rotation by hand, beside a control plane that runs.
func TestCACommand(t *testing.T) {
	p := start(t, nil)
	dir := p.cfg.StateDir
	run := func(args ...string) (string, error) { return ca(t, append(args, "--state-dir", dir)...) }
	root := func() *authority.Authority { return p.cp.keeper.Authority() }
	old := root().ID()
	out, err := run("status")
	if err != nil || !strings.Contains(out, old[:16]) || !strings.Contains(out, "controlplane ca prepare") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := run("activate"); err == nil || !strings.Contains(err.Error(), "ca prepare") {
		t.Errorf("activate before prepare: %v", err)
	}
	if out, err = run("prepare"); err != nil || !strings.Contains(out, "prepared") || !strings.Contains(out, "too early") {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, "both roots", func() bool { return len(root().RootIDs()) == 2 })
	if _, err := run("activate"); err == nil || !strings.Contains(err.Error(), "wait until") {
		t.Errorf("activate at once: %v", err)
	}
	for _, step := range []string{"activate", "retire"} {
		var err error
		eventually(t, step, func() bool { _, err = run(step, "--settle", "0s"); return err == nil })
		eventually(t, step+" here", func() bool { return root().ID() != old && (len(root().RootIDs()) == 1) == (step == "retire") })
	}
	out, err = run("status", "--json")
	var s rotation.Status
	if jerr := json.Unmarshal([]byte(out), &s); err != nil || jerr != nil || s.Signing.ID != root().ID() || s.Phase != rotation.Settled || s.Next != "prepare" {
		t.Errorf("%v, %v\n%s", err, jerr, out)
	}
	if log := p.log.String(); strings.Contains(log, "PRIVATE") || strings.Contains(log, "level=ERROR") {
		t.Error(log)
	}
}

func TestCACommandMistakes(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"status"}, "--state-dir, or --kubernetes"},
		{[]string{"status", "--state-dir", "x", "--kubernetes"}, "--state-dir, or --kubernetes"},
		{[]string{"status", "--kubernetes", "--ca-dir", "x"}, "--ca-dir"},
		{[]string{"activate", "--state-dir", "x", "--settle", "-1s"}, "--settle"},
		{[]string{"prepare", "--state-dir", filepath.Join(t.TempDir(), "new")}, "no CA yet"},
		{[]string{"status", "--state-dir", filepath.Join(t.TempDir(), "new")}, "no CA yet"},
		{[]string{"status", "more"}, "unknown command"},
	} {
		if _, err := ca(t, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.args, err, c.want)
		}
	}
}

// tomorrowsStore has replicas that write a day later: whoever looks then finds them there.
type tomorrowsStore struct{ rotation.Store }

const tomorrows = 25 * time.Hour

func (s tomorrowsStore) Replicas(ctx context.Context) ([]rotation.Replica, error) {
	all, err := s.Store.Replicas(ctx)
	for i := range all {
		all[i].At = all[i].At.Add(tomorrows)
	}
	return all, err
}

// In Kubernetes the command goes by Secrets, by what all replicas say, and by the
// ConfigMaps that there are.
func TestCACommandInKubernetes(t *testing.T) {
	w := newWorld(t, meshObjects()...)
	planes := []*plane{startWith(t, w, func(*Config) {}), startWith(t, w, func(*Config) {})}
	for _, p := range planes {
		eventually(t, "readiness", func() bool { ok, _ := p.ready(); return ok })
	}
	eventually(t, "root", func() bool { return w.rootOf("app") != "" })
	cmd := &caCommand{cfg: Defaults()}
	cmd.cfg.Namespace = ownNS
	cmd.use(w.client, slog.New(slog.DiscardHandler))
	cc := w.dial(planes[0].cp.Addr().String(), "warren-controlplane.warren-system.svc")
	if _, err := sign(t, cc, planes[0].as(token("ztunnel", ownNS+"/ztunnel-1")), "spiffe://cluster.local/ns/app/sa/web"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.prepare(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, p := range planes {
		eventually(t, "both roots", func() bool { return len(p.cp.keeper.Authority().RootIDs()) == 2 })
	}
	var err error
	eventually(t, "the certificate that was given out without the new root", func() bool {
		err = cmd.activate(t.Context(), time.Now())
		if err == nil {
			t.Fatal("activated while an SVID lives that was given out without the new root")
		}
		return strings.Contains(err.Error(), "1 SVIDs") && !strings.Contains(err.Error(), "replica")
	})
	tomorrow := time.Now().Add(tomorrows)
	cmd.store = tomorrowsStore{cmd.store}
	// A namespace in which the root could not be written.
	eventually(t, "the new root in the ConfigMap", func() bool { return strings.Count(w.rootOf("app"), "BEGIN CERTIFICATE") == 2 })
	unread := cmd.unread
	cmd.unread = func(ctx context.Context, _ string) (int, int, error) { return unread(ctx, "of another") }
	if err := cmd.activate(t.Context(), tomorrow); err == nil || !strings.Contains(err.Error(), "ConfigMaps istio-ca-root-cert do not have the new root") {
		t.Errorf("no ConfigMap has the root: %v", err)
	}
	cmd.unread = func(ctx context.Context, id string) (int, int, error) {
		return mapsWithout(ctx, w.client, "of-another-name", id)
	}
	if err := cmd.activate(t.Context(), tomorrow); err == nil || !strings.Contains(err.Error(), "there is no ConfigMap istio-ca-root-cert") {
		t.Errorf("none of no ConfigMaps lacks the root: %v", err)
	}
	cmd.unread = unread
	if err := cmd.activate(t.Context(), tomorrow); err != nil {
		t.Error(err)
	}
	for _, p := range planes {
		eventually(t, "the new root signs", func() bool { return p.cp.keeper.Phase() == rotation.Activated })
	}
	cmd.store = cmd.store.(tomorrowsStore).Store
	eventually(t, "replicas", func() bool {
		err = cmd.retire(t.Context(), time.Now())
		return err != nil && strings.Contains(err.Error(), "1 SVIDs that are valid were signed by the old root") && !strings.Contains(err.Error(), "replica")
	})
	cmd.store = tomorrowsStore{cmd.store}
	if err := cmd.retire(t.Context(), tomorrow); err != nil {
		t.Error(err)
	}
	for _, p := range planes {
		eventually(t, "the new root alone", func() bool {
			return len(p.cp.keeper.Authority().RootIDs()) == 1 && p.cp.keeper.Phase() == rotation.Settled
		})
	}
	eventually(t, "the new root alone in the ConfigMap", func() bool { return strings.Count(w.rootOf("app"), "BEGIN CERTIFICATE") == 1 })
}
