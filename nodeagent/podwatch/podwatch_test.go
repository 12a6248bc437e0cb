package podwatch

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/xds/file"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNoSource(t *testing.T) {
	if _, err := New(nil, nil, enroll.ViewOptions{}); !errors.Is(err, ErrNoSource) {
		t.Errorf("got %v", err)
	}
}

func TestFollowsAFolder(t *testing.T) {
	dir := t.TempDir()
	put := func(labels string) {
		doc := "apiVersion: v1\nkind: Namespace\nmetadata: {name: app, labels: " + labels + "}\n---\n" +
			"apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: app, uid: u}\nspec: {nodeName: n1}\n---\n" +
			"apiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: app, uid: v}\nspec: {nodeName: n2}\n"
		tmp := filepath.Join(dir, ".tmp")
		if err := errors.Join(os.WriteFile(tmp, []byte(doc), 0o600), os.Rename(tmp, filepath.Join(dir, "all.yaml"))); err != nil {
			t.Fatal(err)
		}
	}
	put("{istio.io/dataplane-mode: ambient}")
	w, err := New(file.Feed(dir, slog.New(slog.DiscardHandler)), nil, enroll.ViewOptions{Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := w.View(); v != nil {
		t.Error("there is a view before anything was read")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	waitFor := func(in bool) {
		t.Helper()
		timeout := time.After(10 * time.Second)
		for {
			v, changed := w.View()
			if v != nil {
				if p, ok := v.Pod(enroll.PodName{Namespace: "app", Name: "a"}, "u"); ok && p.Eligible.InMesh == in {
					if _, ok := v.Pod(enroll.PodName{Namespace: "app", Name: "b"}, ""); ok {
						t.Error("a pod of another node is in the view")
					}
					return
				}
			}
			select {
			case <-changed:
			case <-timeout:
				t.Fatalf("the view never said %t", in)
			}
		}
	}
	waitFor(true)
	put("{}")
	waitFor(false)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The agent starts beside a broken file, which held the pod's namespace: the pod
// is not taken for one outside the mesh.
func TestAFileThatWasNeverRead(t *testing.T) {
	dir := t.TempDir()
	put := func(name, doc string) {
		tmp := filepath.Join(dir, ".tmp")
		if err := errors.Join(os.WriteFile(tmp, []byte(doc), 0o600), os.Rename(tmp, filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
	}
	put("pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: app, uid: u}\nspec: {nodeName: n1}\n")
	put("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: app, labels: {istio.io/dataplane-mode: ambient}\n")
	folder := file.Feed(dir, slog.New(slog.DiscardHandler))
	w, err := New(folder, func() (names []string) {
		for _, p := range folder.Untaken() {
			names = append(names, p.File)
		}
		return names
	}, enroll.ViewOptions{Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	waitFor := func(undecided bool) {
		t.Helper()
		timeout := time.After(10 * time.Second)
		for {
			v, changed := w.View()
			if v != nil {
				p, ok := v.Pod(enroll.PodName{Namespace: "app", Name: "a"}, "u")
				err := v.Undecided(p)
				if ok && undecided && err != nil && strings.Contains(err.Error(), "ns.yaml") || ok && !undecided && err == nil && p.Eligible.InMesh {
					return
				}
			}
			select {
			case <-changed:
			case <-timeout:
				t.Fatalf("never undecided: %t", undecided)
			}
		}
	}
	waitFor(true)
	put("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}\n")
	waitFor(false)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
