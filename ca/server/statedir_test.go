package server_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
	"github.com/warren-mesh/warren/ca/server"
)

func tryLoad(t *testing.T, dir string) (*authority.Authority, error) {
	k := rotation.New(rotation.Config{Store: &server.StateDir{Path: dir, TrustDomain: td}, Replica: "test"})
	err := k.Load(t.Context(), time.Now())
	return k.Authority(), err
}

func load(t *testing.T, dir string) *authority.Authority {
	t.Helper()
	a, err := tryLoad(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestTheAuthorityIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	a := load(t, dir)
	if b := load(t, dir); !bytes.Equal(a.RootsPEM(), b.RootsPEM()) {
		t.Error("a second start has another root")
	}
	for name, mode := range map[string]os.FileMode{"ca-key.pem": 0o600, "ca-cert.pem": 0o644, "root-cert.pem": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 4 || !slices.ContainsFunc(files, func(e os.DirEntry) bool { return e.IsDir() && e.Name() == "issued" }) {
		t.Errorf("%v, %v", files, err) // what was issued has its folder from the start
	}
	if text, err := os.ReadFile(filepath.Join(dir, "root-cert.pem")); err != nil || !bytes.Equal(text, a.RootsPEM()) {
		t.Errorf("root-cert.pem: %v", err)
	}
}

func TestManyStartsAtOnceAgree(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	roots := make([]string, 8)
	for i := range roots {
		wg.Go(func() {
			a, err := tryLoad(t, dir)
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = string(a.RootsPEM())
		})
	}
	wg.Wait()
	for _, r := range roots {
		if r != roots[0] {
			t.Fatal("two processes have two roots")
		}
	}
	load(t, dir)
}

func TestWhatACrashLeaves(t *testing.T) {
	dir := t.TempDir()
	load(t, dir)
	for _, name := range []string{"ca-cert.pem", "root-cert.pem"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	load(t, dir) // the key is there, nobody has seen a certificate
	if err := os.Remove(filepath.Join(dir, "root-cert.pem")); err != nil {
		t.Fatal(err)
	}
	load(t, dir)
}

func TestStatesThatAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(dir string) error
		want   string
	}{
		{"key for everybody", func(d string) error { return os.Chmod(filepath.Join(d, "ca-key.pem"), 0o644) }, "chmod 600"},
		{"key gone", func(d string) error { return os.Remove(filepath.Join(d, "ca-key.pem")) }, "without ca-key.pem"},
		{"only the bundle left", func(d string) error {
			return os.Rename(filepath.Join(d, "root-cert.pem"), filepath.Join(remove(d), "root-cert.pem"))
		}, "without ca-cert.pem"},
		{"key cut off", func(d string) error { return os.Truncate(filepath.Join(d, "ca-key.pem"), 40) }, "ca-key.pem"},
		{"certificate junk", func(d string) error { return os.WriteFile(filepath.Join(d, "ca-cert.pem"), []byte("x"), 0o644) }, "ca-cert.pem"},
		{"huge", func(d string) error {
			return os.WriteFile(filepath.Join(d, "root-cert.pem"), make([]byte, 1<<20), 0o644)
		}, "larger than"},
		{"directory for everybody", func(d string) error { return os.Chmod(d, 0o777) }, "chmod 755"},
		{"a link out of the directory", func(d string) error {
			key := filepath.Join(d, "ca-key.pem")
			out := filepath.Join(t.TempDir(), "elsewhere.pem")
			if err := os.Rename(key, out); err != nil {
				return err
			}
			return os.Symlink(out, key)
		}, "ca-key.pem"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			load(t, dir)
			if err := tt.change(dir); err != nil {
				t.Fatal(err)
			}
			_, err := tryLoad(t, dir)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// remove takes certificate and key away.
func remove(dir string) string {
	os.Remove(filepath.Join(dir, "ca-key.pem"))
	os.Remove(filepath.Join(dir, "ca-cert.pem"))
	return dir
}
