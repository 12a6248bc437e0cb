package event

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestAwayFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", AwayName)
	if _, err := ReadAway(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want %v", err, os.ErrNotExist)
	}
	for _, want := range []Away{
		{Namespaces: map[string]string{}},
		{Namespaces: map[string]string{"app": NSIn, "kube-system": NSOut, "x": NSMixed}},
		{Namespaces: map[string]string{"app": NSIn}, Others: NSOut},
	} {
		if err := WriteAway(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := ReadAway(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if names, _ := os.ReadDir(filepath.Dir(path)); len(names) != 1 {
		t.Errorf("left in the directory: %v", names)
	}
	if a, err := ReadAway(path); err != nil || a.Mode("app") != NSIn || a.Mode("newer") != NSOut {
		t.Errorf("app %q, newer %q, %v", a.Mode("app"), a.Mode("newer"), err)
	}
	for _, bad := range []Away{{Namespaces: map[string]string{"app": "perhaps"}}, {Others: "perhaps"}} {
		if err := WriteAway(path, bad); err == nil {
			t.Errorf("a mode that is none was written: %+v", bad)
		}
	}
}

func TestAwayFileRefused(t *testing.T) {
	good := `{"version":1,"namespaces":{"app":"out"}}`
	for _, tc := range []struct {
		name, text string
		mode       os.FileMode
		want       string
	}{
		{"cut off", good[:20], 0o600, "unexpected EOF"},
		{"empty", "", 0o600, "EOF"},
		{"something behind it", good + "x", 0o600, "data after"},
		{"another version", `{"version":2,"namespaces":{}}`, 0o600, "version 2"},
		{"no namespaces", `{"version":1}`, 0o600, "no namespaces"},
		{"a mode that is none", `{"version":1,"namespaces":{"app":"yes"}}`, 0o600, "mode"},
		{"a name that is none", `{"version":1,"namespaces":{"../x":"out"}}`, 0o600, "namespace"},
		{"others may write it", good, 0o622, "may be written by others"},
		{"too long", strings.Repeat(" ", maxAway+1), 0o600, "more than"},
	} {
		path := filepath.Join(t.TempDir(), AwayName)
		if err := errors.Join(os.WriteFile(path, []byte(tc.text), 0o600), os.Chmod(path, tc.mode)); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadAway(path); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.want)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, AwayName)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "x"), []byte(good), 0o600), os.Symlink("x", path)); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadAway(path); err == nil {
		t.Error("a link was followed")
	}
	if _, err := ReadAway(dir); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a directory: %v", err)
	}
}

func TestTombstones(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if got, err := Tombstones(dir); err != nil || len(got) > 0 {
		t.Fatalf("%v, %v", got, err)
	}
	long := strings.Repeat("c", maxName)
	want := []Tombstone{{Key: Key{"c1", "eth0"}, PodUID: "u"}, {Key: Key{"c1", "eth1"}}, {Key: Key{long, "eth0"}}}
	for _, tomb := range append(want, want[0]) {
		if err := WriteTombstone(dir, tomb); err != nil {
			t.Fatal(err)
		}
	}
	graves := filepath.Join(dir, tombstoneDir)
	old := filepath.Join(graves, tmpPrefix+"old")
	if err := errors.Join(
		os.WriteFile(filepath.Join(graves, "bad.json"), []byte(`{"key":{}}`), 0o600),
		os.WriteFile(filepath.Join(graves, tmpPrefix+"new"), nil, 0o600),
		os.WriteFile(old, nil, 0o600), os.Chtimes(old, time.Time{}, time.Now().Add(-2*abandoned)),
	); err != nil {
		t.Fatal(err)
	}
	got, err := Tombstones(dir)
	if err == nil || !strings.Contains(err.Error(), "bad.json") {
		t.Errorf("error %v, want one that names bad.json", err)
	}
	byKey := cmpopts.SortSlices(func(a, b Tombstone) bool { return a.Key.ContainerID+a.Key.IfName < b.Key.ContainerID+b.Key.IfName })
	if diff := cmp.Diff(want, got, byKey); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, tomb := range append(want, want[0]) { // the last one twice
		if err := RemoveTombstone(dir, tomb.Key); err != nil {
			t.Error(err)
		}
	}
	if got, err := Tombstones(dir); err != nil || len(got) > 0 {
		t.Errorf("%v, %v: want none, the damaged one was removed", got, err)
	}
	if err := WriteTombstone(dir, Tombstone{Key: Key{"../x", "eth0"}}); err == nil {
		t.Error("a bad key was written")
	}
	for i := range maxTombstones {
		if err := os.WriteFile(filepath.Join(graves, strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteTombstone(dir, want[0]); err == nil || !strings.Contains(err.Error(), "are waiting") {
		t.Errorf("one too many: %v", err)
	}
}
