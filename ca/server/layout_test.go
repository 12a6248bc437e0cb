package server_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
	"github.com/warren-mesh/warren/ca/server"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/internal/owner"
)

// cert-manager writes tls.crt, tls.key and ca.crt; where Istio's own names are there, too, those count, as for istiod.
func TestTLSNames(t *testing.T) {
	root := newRoot(t)
	a, b := intermediate(t, root), intermediate(t, root)
	put := func(t *testing.T, dir string, files map[string][]byte) {
		t.Helper()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o640); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := &server.StateDir{Path: t.TempDir(), Plugged: t.TempDir(), TrustDomain: td}
	put(t, s.Plugged, map[string][]byte{"tls.crt": append(bytes.Clone(a.Cert), root.Cert...), "tls.key": a.Key, "ca.crt": root.Cert})
	now := time.Now()
	k := keep(t, s, now)
	if got := k.Authority().ID(); got != authority.CertID(a.Cert) {
		t.Errorf("signs with %s", got)
	}
	put(t, s.Plugged, map[string][]byte{"ca-cert.pem": b.Cert, "ca-key.pem": b.Key, "root-cert.pem": root.Cert})
	k.Compare(t.Context(), now.Add(time.Minute))
	if got := k.Authority().ID(); got != authority.CertID(b.Cert) {
		t.Errorf("signs with %s after Istio's names came: %s", got, k.Differs())
	}
	for name, files := range map[string]map[string][]byte{
		"no key":              {"tls.crt": a.Cert, "ca.crt": root.Cert},
		"no certificate":      {"tls.key": a.Key},
		"another one's key":   {"tls.crt": a.Cert, "tls.key": b.Key, "ca.crt": root.Cert},
		"no root":             {"tls.crt": a.Cert, "tls.key": a.Key},
		"not PEM":             {"tls.crt": []byte("certificate"), "tls.key": a.Key},
		"a certificate alone": {"ca.crt": root.Cert},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server.StateDir{Path: t.TempDir(), Plugged: t.TempDir(), TrustDomain: td}
			put(t, s.Plugged, files)
			if err := loads(t, s); err == nil {
				t.Error("taken")
			} else if !strings.Contains(err.Error(), s.Plugged) {
				t.Errorf("%v does not say where", err)
			}
		})
	}
}

func loads(t *testing.T, s *server.StateDir) error {
	t.Helper()
	return rotation.New(rotation.Config{Store: s, Replica: "test"}).Load(t.Context(), time.Now())
}

// What an administrator's command writes, the control plane of another user can read and replace.
func TestWhatRootWritesIsTheFoldersOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		nstest.Need(t, errors.New("needs root, to give a folder away"))
	}
	const uid, gid = 12345, 12346
	dir := t.TempDir()
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	s := &server.StateDir{Path: dir, TrustDomain: td}
	now := time.Now()
	begin(t, s, keep(t, s, now), now, "prepare")
	seen := 0
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if u, g, ok := owner.Of(info); !ok || u != uid || g != gid {
			t.Errorf("%s belongs to %d:%d", path, u, g)
		}
		seen++
		return nil
	})
	if err != nil || seen < 6 { // the folder, key, certificate, roots, record, issued and what is in it
		t.Errorf("%d files, %v", seen, err)
	}
}

// A look at a folder that is not there makes none.
func TestALookMakesNothing(t *testing.T) {
	s := &server.StateDir{Path: filepath.Join(t.TempDir(), "none")}
	k, err := s.Read(t.Context())
	if err != nil || k.Name != "" {
		t.Errorf("%v, %v", k.Name, err)
	}
	if all, err := s.Replicas(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := os.Stat(s.Path); !os.IsNotExist(err) {
		t.Error("it was made")
	}
}

// A process that is ended while it writes a key leaves it in a file that nobody looks at; the next start removes it.
func TestRemnantsAreRemoved(t *testing.T) {
	dir := t.TempDir()
	s := &server.StateDir{Path: dir, TrustDomain: td}
	now := time.Now()
	keep(t, s, now)
	name := func(base string) string { return filepath.Join(dir, "."+base+".ABCDEFGHIJKLMNOPQRSTUVWXYZ") }
	old := []string{name("ca-key.pem"), name("rotation.7.json"), filepath.Join(dir, "issued", ".x.json.ABCDEFGHIJKLMNOPQRSTUVWXYZ")}
	kept := []string{filepath.Join(dir, ".ca-key.pem.ABCDEFGHIJKLMNOPQRSTUVWXY2"), filepath.Join(dir, ".profile"), filepath.Join(dir, "notes.ABCDEFGHIJKLMNOPQRSTUVWXYZ")}
	for _, f := range append(old, kept...) {
		if err := os.WriteFile(f, []byte("half a key"), 0o600); err != nil {
			t.Fatal(err)
		}
		if f == kept[0] {
			continue // another process is writing it
		}
		if err := os.Chtimes(f, now, now.Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	keep(t, s, now)
	for _, f := range old {
		if _, err := os.Lstat(f); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", f, err)
		}
	}
	for _, f := range kept {
		if _, err := os.Lstat(f); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}
