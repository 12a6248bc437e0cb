package file

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A file that is renamed while the folder is read keeps its objects at every moment.
func TestRenameDuringScan(t *testing.T) {
	dir := t.TempDir()
	var s *scanner
	from, to := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "z.yaml")
	if err := os.WriteFile(from, []byte(policyA), 0o600); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		pace := time.NewTicker(200 * time.Microsecond)
		defer pace.Stop()
		for {
			if err := os.Rename(from, to); err != nil {
				t.Errorf("rename: %v", err)
			}
			from, to = to, from
			select {
			case <-stop:
				return
			case <-pace.C:
			}
		}
	}()
	for i := range 3_000 {
		if i%3 == 0 { // the first scan of a folder as well, which knows of no names
			s = newScanner(dir, func(string, []string) {})
		}
		if _, err := s.scan(time.Now()); err != nil {
			t.Fatal(err)
		}
		if o, _ := merge(s.files); len(o.AuthorizationPolicies) != 1 {
			t.Errorf("scan %d: %d policies, want the one that was there all the time", i, len(o.AuthorizationPolicies))
			break
		}
	}
	close(stop)
	<-stopped
}

// A file that list after list misses, because it is renamed each time, is not gone.
func TestMissedAgain(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "z.yaml")
	if err := os.WriteFile(from, []byte(policyA), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*scanner{"the first scan": newScanner(dir, func(string, []string) {}), "another": newScanner(dir, func(string, []string) {})} {
		if name == "another" {
			if _, err := s.scan(time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		lists := 0
		s.readDir = func(dir string) ([]os.DirEntry, error) {
			if lists++; lists > 4 {
				return os.ReadDir(dir)
			}
			err := os.Rename(from, to)
			from, to = to, from
			return nil, err
		}
		if _, err := s.scan(time.Now()); err != nil {
			t.Fatal(err)
		}
		if o, _ := merge(s.files); len(o.AuthorizationPolicies) != 1 {
			t.Errorf("%s: %d policies, want the one that was there all the time", name, len(o.AuthorizationPolicies))
		}
	}
}

// coarse has the time that kernels before 6.13 would give, and some file systems still do.
type coarse struct{ os.FileInfo }

func (c coarse) ModTime() time.Time { return c.FileInfo.ModTime().Truncate(10 * time.Millisecond) }

// TestMissedAtLength: a folder that was not at rest when it was listed is not taken for
// that when the list took its time, where two changes may leave the same time.
func TestMissedAtLength(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "z.yaml")
	if err := os.WriteFile(from, []byte(policyA), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 8 { // not each of them has both renames at one time
		s := newScanner(dir, func(string, []string) {})
		s.stat = func(dir string) (os.FileInfo, error) {
			info, err := os.Stat(dir)
			return coarse{info}, err
		}
		lists := 0
		s.readDir = func(dir string) ([]os.DirEntry, error) {
			if lists++; lists > 2 {
				return os.ReadDir(dir)
			}
			err := os.Rename(from, to)
			from, to = to, from
			if lists == 2 {
				time.Sleep(tick + 5*time.Millisecond) // a slow list
			}
			return nil, err
		}
		if _, err := s.scan(time.Now()); err != nil {
			t.Fatal(err)
		}
		if o, _ := merge(s.files); len(o.AuthorizationPolicies) != 1 {
			t.Fatalf("%d policies, want the one that was there all the time", len(o.AuthorizationPolicies))
		}
	}
}

// Where the folder grows too large, what is in force stays and what is new is refused.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	s := newScanner(dir, func(string, []string) {})
	s.maxFiles = 2
	write := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(pod(name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(refused string, want ...string) {
		t.Helper()
		if _, err := s.scan(time.Now()); err != nil {
			t.Fatal(err)
		}
		if got := sortedNames(s.files); !slices.Equal(got, want) || strings.Contains(s.folder, "not taken") != (refused != "") || !strings.Contains(s.folder, refused) {
			t.Errorf("files %v, %q; want %v, %q", got, s.folder, want, refused)
		}
	}
	write("y")
	write("z")
	want("", "y.yaml", "z.yaml")
	write("a")
	want("a.yaml and files after it are not taken", "y.yaml", "z.yaml")
	s.maxFiles, s.maxBytes = 10, 10
	want("z.yaml and files after it are not taken", "y.yaml", "z.yaml")
	if err := os.Remove(filepath.Join(dir, "y.yaml")); err != nil {
		t.Fatal(err)
	}
	s.maxBytes = 1 << 20
	want("", "a.yaml", "z.yaml")
}

// Files that were never taken are told apart from those that have become unreadable.
func TestUntaken(t *testing.T) {
	dir := t.TempDir()
	s := newScanner(dir, func(string, []string) {})
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(names ...string) {
		t.Helper()
		if _, err := s.scan(time.Now()); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range s.untaken() {
			got = append(got, p.File)
		}
		if !slices.Equal(got, names) {
			t.Errorf("untaken %v, want %v", got, names)
		}
	}
	write("a.yaml", pod("a"))
	write("b.yaml", "b: [")
	write("c.yaml", "# nothing\n")
	want("b.yaml")
	write("a.yaml", "a: [")
	write("c.yaml", "c: [")
	want("b.yaml")
	want("b.yaml")
	write("b.yaml", pod("b"))
	want()
	s.maxFiles = 3
	write("d.yaml", pod("d"))
	want("") // the folder
}
