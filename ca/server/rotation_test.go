package server_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
	"github.com/warren-mesh/warren/ca/server"
)

// keep starts a keeper on a folder.
func keep(t *testing.T, s *server.StateDir, now time.Time) *rotation.Keeper {
	t.Helper()
	k := rotation.New(rotation.Config{Store: s, Replica: "test", Overlap: time.Hour})
	if err := k.Load(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	return k
}

func read(t *testing.T, s *server.StateDir) rotation.Kept {
	t.Helper()
	k, err := s.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// begin takes the steps up to one.
func begin(t *testing.T, s *server.StateDir, k *rotation.Keeper, now time.Time, steps ...string) {
	t.Helper()
	for _, name := range steps {
		kept := read(t, s)
		all, err := s.Replicas(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var r rotation.Record
		switch name {
		case "prepare":
			r, err = rotation.Prepare(kept, all, now)
		case "activate":
			r, err = rotation.Activate(kept, all, 0, now)
		case "retire":
			r, err = rotation.Retire(kept, all, now)
		}
		if err == nil {
			err = s.WriteRecord(t.Context(), kept, r)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if k != nil {
			k.Compare(t.Context(), now)
			k.Save(t.Context(), now)
		}
	}
}

func roots(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "root-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(text, []byte("BEGIN CERTIFICATE"))
}

// What proxies are given follows each step, and in the end nothing is left of the old root.
func TestRotationInAFolder(t *testing.T) {
	s := &server.StateDir{Path: t.TempDir(), TrustDomain: td}
	now := time.Now()
	k := keep(t, s, now)
	old := k.Authority()
	oldKey, err := os.ReadFile(filepath.Join(s.Path, "ca-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name  string
		roots int
		old   bool // signs
	}{{"prepare", 2, true}, {"activate", 2, false}, {"retire", 1, false}} {
		begin(t, s, k, now, step.name)
		if n := roots(t, s.Path); n != step.roots || (k.Authority().ID() == old.ID()) != step.old {
			t.Errorf("%s: %d roots, want %d; the old one signs: %v", step.name, n, step.roots, !step.old)
		}
		again := keep(t, s, now)
		if again.Authority().ID() != k.Authority().ID() || roots(t, s.Path) != step.roots {
			t.Errorf("%s: a control plane that starts has another CA, or %d roots", step.name, roots(t, s.Path))
		}
	}
	err = filepath.WalkDir(s.Path, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if bytes.Contains(text, oldKey) || strings.Contains(path, "rotation.") && bytes.Contains(text, []byte("key")) {
			t.Errorf("the old key is still in %s", path)
		}
		if info, err := d.Info(); err == nil && bytes.Contains(text, []byte("PRIVATE")) && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A crash between the files that the last step replaces.
func TestRetirementCutShort(t *testing.T) {
	for _, cut := range [][]string{{"ca-key.pem"}, {"ca-key.pem", "ca-cert.pem"}, {"ca-key.pem", "ca-cert.pem", "root-cert.pem"}} {
		s := &server.StateDir{Path: t.TempDir(), TrustDomain: td}
		now := time.Now()
		k := keep(t, s, now)
		begin(t, s, k, now, "prepare", "activate")
		next := k.Authority().ID()
		begin(t, s, nil, now, "retire")
		r := read(t, s).Record
		for _, name := range cut {
			text := map[string][]byte{"ca-key.pem": r.Other.Key, "ca-cert.pem": r.Other.Cert, "root-cert.pem": r.Other.Roots}[name]
			if err := os.WriteFile(filepath.Join(s.Path, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		again := keep(t, s, now)
		again.Compare(t.Context(), now)
		kept := read(t, s)
		if again.Authority().ID() != next || len(again.Authority().RootIDs()) != 1 || roots(t, s.Path) != 1 || kept.Record.Phase != rotation.Settled || authority.CertID(kept.Files.Cert) != next {
			t.Errorf("cut after %v: %d roots, %q", cut, roots(t, s.Path), kept.Record.Phase)
		}
	}
}

// Of those who write a record at the same time one wins.
func TestOneRecordWins(t *testing.T) {
	s := &server.StateDir{Path: t.TempDir(), TrustDomain: td}
	keep(t, s, time.Now())
	for range 5 {
		kept := read(t, s)
		if kept.Record.Phase != rotation.Settled {
			if err := s.WriteRecord(t.Context(), kept, rotation.Record{}); err != nil {
				t.Fatal(err)
			}
			kept = read(t, s)
		}
		errs := make([]error, 8)
		ids := make([]string, 8)
		var wg sync.WaitGroup
		for i := range errs {
			r, err := rotation.Prepare(kept, nil, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			ids[i] = authority.CertID(r.Other.Cert)
			wg.Go(func() { errs[i] = s.WriteRecord(t.Context(), kept, r) })
		}
		wg.Wait()
		is, won := authority.CertID(read(t, s).Record.Other.Cert), 0
		for i, err := range errs {
			if err == nil {
				won++
				if ids[i] != is {
					t.Error("one won, and another is kept")
				}
			} else if !errors.Is(err, rotation.ErrChanged) {
				t.Error(err)
			}
		}
		if won != 1 {
			t.Errorf("%d won", won)
		}
	}
	found, err := filepath.Glob(filepath.Join(s.Path, "rotation.*.json"))
	if err != nil || len(found) != 1 {
		t.Errorf("%v, %v", found, err)
	}
}

// A record that nobody understands is not taken for none: another CA could sign.
func TestRecordsThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"junk":             {"x", 0o600, "does not parse"},
		"of tomorrow":      {`{"phase":"doubled"}`, 0o600, "newer version"},
		"others may read":  {"{}", 0o644, "chmod 600"},
		"of another world": {`{"phase":"prepared"}`, 0o600, "not complete"},
	} {
		s := &server.StateDir{Path: t.TempDir(), TrustDomain: td}
		k := keep(t, s, time.Now())
		if err := os.WriteFile(filepath.Join(s.Path, "rotation.7.json"), []byte(c.text), c.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if k.Compare(t.Context(), time.Now()) || !strings.Contains(k.Differs(), c.want) {
			t.Errorf("%s: a control plane that runs: %q", name, k.Differs())
		}
	}
}

// However many replicas left something behind, the next one removes it.
func TestManyReplicasOfBefore(t *testing.T) {
	s := &server.StateDir{Path: t.TempDir(), TrustDomain: td}
	for i := range 300 {
		if err := s.WriteReplica(t.Context(), rotation.Replica{Name: fmt.Sprint("r", i), Ended: true}, nil); err != nil {
			t.Fatal(err)
		}
	}
	keep(t, s, time.Now())
	if all, err := s.Replicas(t.Context()); err != nil || len(all) != 1 || all[0].Name != "test" {
		t.Errorf("%d replicas are left; %v", len(all), err)
	}
}

func TestReplicasInAFolder(t *testing.T) {
	s := &server.StateDir{Path: t.TempDir(), TrustDomain: td}
	if all, err := s.Replicas(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	at := time.Unix(1_800_000_000, 0).UTC()
	for _, name := range []string{"a", "b"} {
		r := rotation.Replica{Name: name, At: at, Step: "settled", Longest: time.Hour, Batches: []rotation.Batch{{Issuer: "i", Roots: []string{"r"}, Live: map[int64]int{7: 3}}}}
		if err := s.WriteReplica(t.Context(), r, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.WriteReplica(t.Context(), rotation.Replica{Name: "b", Ended: true}, []string{"a", "gone already"}); err != nil {
		t.Fatal(err)
	}
	all, err := s.Replicas(t.Context())
	if err != nil || len(all) != 1 || all[0].Name != "b" || !all[0].Ended || len(all[0].Batches) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if err := os.WriteFile(filepath.Join(s.Path, "issued", "c.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Replicas(t.Context()); err == nil || !strings.Contains(err.Error(), "issued/c.json") {
		t.Errorf("half a file: %v", err)
	}
}
