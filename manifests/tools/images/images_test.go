package images

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// The committed lock file has, for each architecture, the programs that the
// agent runs, and both architectures have the same packages.
func TestLockFile(t *testing.T) {
	text, err := os.ReadFile("../debian.lock")
	if err != nil {
		t.Fatal(err)
	}
	list, err := ParseLock(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(FormatLock(list), text) {
		t.Error("debian.lock is not as FormatLock writes it")
	}
	names := map[string]map[string]bool{}
	for _, l := range list {
		if names[l.Arch] == nil {
			names[l.Arch] = map[string]bool{}
		}
		names[l.Arch][l.Name] = true
	}
	for _, arch := range Archs() {
		for _, want := range append(Wanted(), "libc6", "libxtables12") {
			if !names[arch][want] {
				t.Errorf("%s: %s is not locked", arch, want)
			}
		}
		if len(names[arch]) != len(names[Archs()[0]]) {
			t.Errorf("%s has %d packages, %s has %d", arch, len(names[arch]), Archs()[0], len(names[Archs()[0]]))
		}
	}
}

func TestLockMistakes(t *testing.T) {
	good := "amd64 a-b 1.0-1 " + strings.Repeat("0a", 32)
	if _, err := ParseLock(strings.NewReader("# x\n\n" + good + "\n")); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{
		good + " more", "amd64 a-b 1.0-1", strings.ToUpper(good), "amd64 -oX=y 1.0-1 " + strings.Repeat("0a", 32),
		"amd64 ../x 1 " + strings.Repeat("0a", 32), "amd64 a-b --x " + strings.Repeat("0a", 32), "amd64 a-b 1 xyz", good + "\n" + good,
	} {
		if _, err := ParseLock(strings.NewReader(bad)); err == nil || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// entry is what is put into a package made up for a test.
type entry struct {
	name, body, link string
	kind             byte
	mode             int64
}

// debOf makes a .deb as dpkg-deb writes it, uncompressed.
func debOf(t *testing.T, control string, files ...entry) []byte {
	t.Helper()
	tarOf := func(files ...entry) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, f := range files {
			if f.kind == 0 {
				f.kind = tar.TypeReg
			}
			if f.mode == 0 {
				f.mode = 0o644
			}
			if err := w.WriteHeader(&tar.Header{Name: f.name, Typeflag: f.kind, Size: int64(len(f.body)), Linkname: f.link, Mode: f.mode}); err != nil {
				t.Fatal(err)
			}
			io.WriteString(w, f.body)
		}
		w.Close()
		return b.Bytes()
	}
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		body []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar", tarOf(entry{name: "./control", body: control})}, {"data.tar", tarOf(files...)}} {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.body))
		b.Write(m.body)
		if len(m.body)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

const controlText = "Package: p\nVersion: 1:1.0-1\nArchitecture: amd64\nDescription: a thing\n with a second line\n"

var locked = Locked{Arch: "amd64", Name: "p", Version: "1:1.0-1"}

func TestUnpack(t *testing.T) {
	tr := tree{}
	err := tr.unpack(debOf(t, controlText,
		entry{name: "./", kind: tar.TypeDir}, entry{name: "./lib/", kind: tar.TypeDir},
		entry{name: "./lib/x/lib.so.1", body: "elf", mode: 0o755},
		entry{name: "./usr/lib/x/hard", kind: tar.TypeLink, link: "./lib/x/lib.so.1"},
		entry{name: "./usr/lib/x/soft", kind: tar.TypeSymlink, link: "lib.so.1"},
		entry{name: "./usr/share/doc/p/copyright", body: "free"}, entry{name: "./usr/share/doc/p/changelog.gz", body: "x"},
		entry{name: "./usr/share/man/man1/p.1.gz", body: "x"}, entry{name: "./usr/lib/x/gconv/UTF-7.so", body: "x"},
		entry{name: "./etc/cron.d/p", body: "x"}, entry{name: "./etc/protocols", body: "tcp 6"},
	), locked)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"usr/lib/x/lib.so.1": "elf", "usr/lib/x/hard": "elf", "usr/lib/x/soft": "-> lib.so.1", "usr/share/doc/p/copyright": "free",
		"etc/protocols": "tcp 6", "var/lib/dpkg/status.d/p": controlText,
	}
	for p, f := range tr {
		switch got := string(f.Body); {
		case f.Mode.IsDir():
		case f.Link != "" && want[p] != "-> "+f.Link, f.Link == "" && want[p] != got:
			t.Errorf("/%s: %q %q, want %q", p, got, f.Link, want[p])
		}
		delete(want, p)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	if tr["usr/lib/x/hard"].Mode != 0o755 {
		t.Errorf("the hard link's mode is %v", tr["usr/lib/x/hard"].Mode)
	}
}

// What is not what was locked, or does not fit, is refused.
func TestUnpackRefuses(t *testing.T) {
	for what, archive := range map[string][]byte{
		"another package": debOf(t, strings.Replace(controlText, "Package: p", "Package: q", 1)),
		"another version": debOf(t, strings.Replace(controlText, "1:1.0-1", "2", 1)),
		"another arch":    debOf(t, strings.Replace(controlText, "amd64", "arm64", 1)),
		"a device":        debOf(t, controlText, entry{name: "./dev/x", kind: tar.TypeChar}),
		"a loose link":    debOf(t, controlText, entry{name: "./a", kind: tar.TypeLink, link: "./b"}),
		"two of a path":   debOf(t, controlText, entry{name: "./lib/a", body: "1"}, entry{name: "./usr/lib/a", body: "2"}),
		"a file above":    debOf(t, controlText, entry{name: "./a", body: "1"}, entry{name: "./a/b", body: "2"}),
		"no archive":      []byte("x"),
	} {
		if err := (tree{}).unpack(archive, locked); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	// A path that leads out of the tree stays in it.
	tr := tree{}
	if err := tr.unpack(debOf(t, controlText, entry{name: "../../up", body: "x"}), locked); err != nil || string(tr["up"].Body) != "x" {
		t.Errorf("%v, %v", err, tr)
	}
}

// program is an ELF header that says what static asks.
func program(machine uint16) []byte {
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(b[16:], 2)
	binary.LittleEndian.PutUint16(b[18:], machine)
	binary.LittleEndian.PutUint32(b[20:], 1)
	binary.LittleEndian.PutUint16(b[52:], 64)
	return b
}

const amd64, arm64 = 62, 183

func input(t *testing.T, machine uint16) Input {
	t.Helper()
	dir := t.TempDir()
	for _, p := range []string{"nodeagent", "warren-cni", "proxy", "controlplane"} {
		if err := os.WriteFile(filepath.Join(dir, p), program(machine), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var tools []entry
	for _, p := range []string{"iptables", "ip6tables"} {
		for _, s := range []string{"", "-save", "-restore"} {
			tools = append(tools, entry{name: "./usr/sbin/" + p + "-nft" + s, body: "x", mode: 0o755})
		}
	}
	return Input{Version: "v1", Arch: "amd64", Bin: dir, License: []byte("free"), Debian: map[Locked][]byte{locked: debOf(t, controlText, tools...)}}
}

// The same input gives the same bytes, wherever and whenever.
func TestReproducible(t *testing.T) {
	for _, img := range All() {
		var files [2][]byte
		for i := range files {
			built, err := Build(img, input(t, amd64))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "image.tar")
			if err := Save(path, built, img.Name, "v1"); err != nil {
				t.Fatal(err)
			}
			if files[i], err = os.ReadFile(path); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(files[0], files[1]) {
			t.Errorf("%s: two builds differ", img.Name)
		}
	}
}

func TestSavedImage(t *testing.T) {
	for _, img := range All() {
		built, err := Build(img, input(t, amd64))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "image.tar")
		if err := Save(path, built, img.Name, "v1"); err != nil {
			t.Fatal(err)
		}
		tag, err := name.NewTag(img.Name + ":v1")
		if err != nil {
			t.Fatal(err)
		}
		read, err := tarball.ImageFromPath(path, &tag)
		if err != nil {
			t.Fatalf("%s: %v", img.Name, err)
		}
		cfg, err := read.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if cfg.OS != "linux" || cfg.Architecture != "amd64" || cfg.RootFS.Type != "layers" || cfg.Config.WorkingDir != "/" || cfg.Config.User == "" {
			t.Errorf("%s: %+v", img.Name, cfg)
		}
		for p := range img.Programs {
			h := find(t, read, p)
			if h.Mode != 0o755 || h.Uid != 0 || h.Uname != "" || !h.ModTime.Equal(h.ModTime.Truncate(0)) || h.ModTime.Unix() != 0 {
				t.Errorf("%s: %+v", img.Name, h)
			}
		}
		if img.Debian {
			if h := find(t, read, "usr/sbin/iptables"); h.Linkname != "iptables-nft" {
				t.Errorf("iptables is %q", h.Linkname)
			}
		}
	}
}

func find(t *testing.T, img v1.Image, path string) *tar.Header {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err != nil {
				break
			}
			if h.Name == path {
				return h
			}
		}
	}
	t.Fatalf("no /%s in the image", path)
	return nil
}

// A program of the wrong machine, or one that needs a linker, is not put into an
// image where it cannot run.
func TestWrongPrograms(t *testing.T) {
	if _, err := Build(All()[1], input(t, arm64)); err == nil || !strings.Contains(err.Error(), "not for amd64") {
		t.Errorf("a program for another machine: %v", err)
	}
	dynamic := append(program(amd64), make([]byte, 56)...)
	binary.LittleEndian.PutUint64(dynamic[32:], 64)
	binary.LittleEndian.PutUint16(dynamic[54:], 56)
	binary.LittleEndian.PutUint16(dynamic[56:], 1)
	binary.LittleEndian.PutUint32(dynamic[64:], 3)
	if err := static(dynamic, "amd64"); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("a dynamic program: %v", err)
	}
	if _, err := Build(All()[0], Input{Bin: input(t, amd64).Bin, Arch: "amd64"}); err == nil {
		t.Error("an agent without Debian's packages")
	}
}

// Only a package with the locked sum is taken from the cache.
func TestCache(t *testing.T) {
	dir := t.TempDir()
	l := locked
	l.SHA256 = sum([]byte("good"))
	if err := os.WriteFile(cached(dir, l), []byte("good"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Fetch(t.Context(), dir, []Locked{l})
	if err != nil || string(got[l]) != "good" {
		t.Errorf("%v, %v", got, err)
	}
	a := &apt{t.TempDir()}
	if err := os.Mkdir(filepath.Join(a.dir, "got"), fs.ModePerm); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.dir, "got", "p.deb"), []byte("bad"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := a.collect(dir, []Locked{l}, map[Locked][]byte{}); err == nil || !strings.Contains(err.Error(), "p:amd64=1:1.0-1") {
		t.Errorf("a package with another sum: %v", err)
	}
}
