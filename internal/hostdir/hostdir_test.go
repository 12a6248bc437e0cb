package hostdir

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newHost has /etc/d, in which a file f is, and a folder beside the root, whose
// file nobody may reach.
func newHost(t *testing.T) (root, outside string) {
	t.Helper()
	base := t.TempDir()
	root, outside = filepath.Join(base, "root"), filepath.Join(base, "outside")
	must(t, os.MkdirAll(filepath.Join(root, "etc/d"), 0o755))
	must(t, os.MkdirAll(outside, 0o755))
	must(t, os.WriteFile(filepath.Join(root, "etc/d/f"), []byte("inside"), 0o640))
	must(t, os.WriteFile(filepath.Join(outside, "f"), []byte("outside"), 0o644))
	return root, outside
}

func TestOpenFollowsAsTheHost(t *testing.T) {
	root, outside := newHost(t)
	for name, to := range map[string]string{
		"abs": "/etc/d", "rel": "etc/d", "up": "../../../../etc/d", "chain": "abs", "through": "/etc/../rel/../d",
		"out": outside, "loop": "loop", "gone": "/nowhere", "file": "/etc/d/f",
	} {
		must(t, os.Symlink(to, filepath.Join(root, name)))
	}
	for path, ok := range map[string]bool{
		"/etc/d": true, "/etc/d/": true, "//etc//./d/../d": true, "/../../etc/d": true,
		"/abs": true, "/rel": true, "/up": true, "/chain": true, "/through": true,
		"/out": false, "/loop": false, "/gone": false, "/file": false, "etc/d": false, "": false,
	} {
		d, err := Open(root, path)
		if (err == nil) != ok {
			t.Errorf("%q: %v", path, err)
		}
		if err != nil {
			continue
		}
		if data, _, err := d.Read("f", 100); err != nil || string(data) != "inside" {
			t.Errorf("%q: read %q, %v", path, data, err)
		}
		if got := d.Seen(); got != filepath.Join(root, "etc/d") {
			t.Errorf("%q is seen at %s", path, got)
		}
		must(t, d.Close())
	}
	if _, err := Open(root, "/gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want one that says it does not exist", err)
	}
	if _, err := Open(root+"/nowhere", "/etc"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func openDir(t *testing.T, root string) *Dir {
	t.Helper()
	d, err := Open(root, "/etc/d")
	must(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestReadOnlyRegularFiles(t *testing.T) {
	root, outside := newHost(t)
	at := func(name string) string { return filepath.Join(root, "etc/d", name) }
	must(t, os.Symlink("/etc/d/f", at("link")))
	must(t, os.Symlink("../../../outside/f", at("escape")))
	must(t, os.Symlink(filepath.Join(outside, "f"), at("escape2")))
	must(t, os.Symlink("/dev/zero", at("device")))
	must(t, os.Mkdir(at("folder"), 0o755))
	must(t, syscall.Mkfifo(at("pipe"), 0o644))
	d := openDir(t, root)
	for name, ok := range map[string]bool{
		"f": true, "link": true, "escape": false, "escape2": false, "device": false, "folder": false, "pipe": false,
		"gone": false, "": false, ".": false, "..": false, "../d/f": false, "folder/../f": false,
	} {
		data, info, err := d.Read(name, 6)
		if (err == nil) != ok {
			t.Errorf("%q: %q, %v", name, data, err)
		}
		if err == nil && (string(data) != "inside" || info.Mode != 0o640 || info.Size != 6 || info.Link != (name == "link")) {
			t.Errorf("%q: %q, %+v", name, data, info)
		}
		if err != nil && name != "" && !strings.Contains(err.Error(), filepath.Join("/etc/d", name)) {
			t.Errorf("%q: error %q does not name the file as the host does", name, err)
		}
	}
	if _, _, err := d.Read("f", 5); err == nil {
		t.Error("more than the limit was read")
	}
	names, err := d.Names()
	must(t, err)
	if want := []string{"device", "escape", "escape2", "f", "link", "pipe"}; !slices.Equal(names, want) {
		t.Errorf("names %v, want %v", names, want)
	}
	if !d.Has("escape") || d.Has("gone") || d.Has("..") {
		t.Error("Has")
	}
}

func TestWrite(t *testing.T) {
	root, outside := newHost(t)
	d := openDir(t, root)
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	must(t, d.Write("new", strings.NewReader("text"), 0o644, os.Geteuid(), os.Getegid()))
	if data, info, err := d.Read("new", 10); err != nil || string(data) != "text" || info.Mode != 0o644 {
		t.Errorf("%q, %+v, %v", data, info, err)
	}
	if err := d.Write("new", strings.NewReader("x"), 0o644, 0, 0); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v", err)
	}
	must(t, os.Symlink(filepath.Join(outside, "made"), filepath.Join(root, "etc/d/link")))
	if err := d.Write("link", strings.NewReader("x"), 0o644, 0, 0); err == nil {
		t.Error("wrote through a link")
	}
	failed := errors.New("no more")
	if err := d.Write("half", io.MultiReader(strings.NewReader("ha"), iotest.ErrReader(failed)), 0o644, os.Geteuid(), os.Getegid()); !errors.Is(err, failed) {
		t.Errorf("error %v", err)
	}
	if d.Has("half") {
		t.Error("half a file was left")
	}
	if _, err := os.Stat(filepath.Join(outside, "made")); err == nil {
		t.Error("a file outside was made")
	}
}

func TestExchange(t *testing.T) {
	root, _ := newHost(t)
	d := openDir(t, root)
	must(t, d.Write("g", strings.NewReader("other"), 0o600, os.Geteuid(), os.Getegid()))
	before, err := d.Stat("f")
	must(t, err)
	must(t, d.Exchange("g", "f"))
	for name, want := range map[string]string{"f": "other", "g": "inside"} {
		if data, _, err := d.Read(name, 10); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if after, err := d.Stat("g"); err != nil || after.Ino != before.Ino {
		t.Errorf("another inode: %+v, %v", after, err)
	}
	if err := d.Exchange("g", "gone"); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("error %v", err)
	}
	for _, err := range []error{
		d.Exchange("../x", "f"), d.Rename("f", "../x"), d.Rename("../x", "f"), d.Link("f", "../x"), d.Remove(".."), d.Remove("../d/f"),
	} {
		if err == nil {
			t.Error("something outside of the folder was reached")
		}
	}
	must(t, d.Link("f", "second"))
	must(t, d.Rename("second", "third"))
	must(t, d.Remove("third"))
	must(t, d.Remove("third"))
	must(t, d.Sync())
}

// The folder stays the one that was opened.
func TestFolderReplaced(t *testing.T) {
	root, outside := newHost(t)
	d := openDir(t, root)
	must(t, os.Rename(filepath.Join(root, "etc/d"), filepath.Join(root, "etc/old")))
	must(t, os.Symlink(outside, filepath.Join(root, "etc/d")))
	if data, _, err := d.Read("f", 10); err != nil || string(data) != "inside" {
		t.Errorf("%q, %v", data, err)
	}
	must(t, d.Remove("f"))
	if _, err := os.Stat(filepath.Join(outside, "f")); err != nil {
		t.Errorf("a file outside was removed: %v", err)
	}
}
