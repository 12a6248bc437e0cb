package file

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/warren-mesh/warren/xds/translate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a feeder that runs on a folder.
type running struct {
	t    *testing.T
	dir  string
	f    *Feeder
	log  *lockedBuffer
	stop func()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func run(t *testing.T, dir string) *running {
	t.Helper()
	r := &running{t: t, dir: dir, log: &lockedBuffer{}}
	r.f = Feed(dir, slog.New(slog.NewTextHandler(r.log, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.f.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *running) write(name, content string) {
	r.t.Helper()
	tmp := filepath.Join(r.dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(r.dir, name)); err != nil {
		r.t.Fatal(err)
	}
}

func names(o translate.Objects) []string {
	var out []string
	for _, p := range o.Pods {
		out = append(out, "Pod/"+p.Name)
	}
	for _, n := range o.Namespaces {
		out = append(out, "Namespace/"+n.Name)
	}
	for _, p := range o.AuthorizationPolicies {
		out = append(out, "AuthorizationPolicy/"+p.Name)
	}
	slices.Sort(out)
	return out
}

// want waits until the feeder holds these objects, and problems with these words.
func (r *running) want(objects []string, problems ...string) {
	r.t.Helper()
	slices.Sort(objects)
	timeout := time.After(8 * time.Second)
	for {
		got, changed := r.f.Read()
		have := r.f.Problems()
		ok := slices.Equal(names(got), objects) && len(have) == len(problems)
		for i := range min(len(have), len(problems)) {
			ok = ok && strings.Contains(have[i].String(), problems[i])
		}
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			r.t.Fatalf("objects %v, problems %v, want %v, %v", names(got), have, objects, problems)
		}
	}
}

func pod(name string) string { return strings.ReplaceAll(podA, "name: a,", "name: "+name+",") }

func TestFollowsFolder(t *testing.T) {
	dir := t.TempDir()
	r := run(t, dir)
	<-r.f.Synced()
	r.want(nil)
	r.write("one.yaml", pod("a"))
	r.want([]string{"Pod/a"})
	r.write("two.yml", pod("b")+"---\n"+policyA)
	r.want([]string{"Pod/a", "Pod/b", "AuthorizationPolicy/deny"})
	r.write("one.yaml", pod("c"))
	r.want([]string{"Pod/b", "Pod/c", "AuthorizationPolicy/deny"})
	r.write("skipped.txt", pod("d"))
	r.write(".hidden.yaml", pod("d"))
	if err := os.Remove(filepath.Join(dir, "two.yml")); err != nil {
		t.Fatal(err)
	}
	r.want([]string{"Pod/c"})
}

func TestBadFileKeepsWhatItHeld(t *testing.T) {
	dir := t.TempDir()
	r := run(t, dir)
	r.write("a.yaml", pod("a"))
	r.write("b.yaml", pod("b"))
	r.want([]string{"Pod/a", "Pod/b"})
	r.write("a.yaml", pod("a")+"---\nkind: oops")
	r.want([]string{"Pod/a", "Pod/b"}, "a.yaml: not taken: document 2: kind and apiVersion must be set; its 1 objects from before stay")
	r.write("a.yaml", "")
	r.want([]string{"Pod/a", "Pod/b"}, "a.yaml: not taken: empty")
	r.write("b.yaml", pod("b2")) // others go on
	r.want([]string{"Pod/a", "Pod/b2"}, "a.yaml: not taken: empty")
	r.write("new.yaml", "nonsense")
	r.want([]string{"Pod/a", "Pod/b2"}, "a.yaml", "new.yaml: not taken: document 1")
	r.write("a.yaml", pod("a3"))
	r.write("new.yaml", "# later\n")
	r.want([]string{"Pod/a3", "Pod/b2"})
	r.stop()
	if got := r.log.String(); !strings.Contains(got, "file=a.yaml") || !strings.Contains(got, "everything in the folder is taken again") {
		t.Errorf("log does not tell the story:\n%s", got)
	}
}

func TestDuplicates(t *testing.T) {
	r := run(t, t.TempDir())
	r.write("b.yaml", pod("x"))
	r.want([]string{"Pod/x"})
	r.write("a.yaml", strings.Replace(pod("x"), "n1", "n2", 1))
	r.want([]string{"Pod/x"}, "b.yaml: Pod app/x: also in a.yaml, which counts")
	if got := r.f.Objects().Pods[0].Spec.NodeName; got != "n2" {
		t.Errorf("the pod is that of node %s, want the first file's", got)
	}
}

func TestUnknownKindsAreReportedOnce(t *testing.T) {
	r := run(t, t.TempDir())
	r.write("a.yaml", "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}\n---\n"+pod("a"))
	r.want([]string{"Pod/a"})
	r.write("b.yaml", "{apiVersion: apps/v1, kind: Deployment, metadata: {name: e}}\n---\n"+pod("b"))
	r.want([]string{"Pod/a", "Pod/b"})
	r.stop()
	if n := strings.Count(r.log.String(), "apps/v1, Kind=Deployment"); n != 1 {
		t.Errorf("reported %d times, want once:\n%s", n, r.log)
	}
}

// As kubelet mounts a ConfigMap: files are links through ..data, which is turned to
// another folder.
func TestConfigMapStyle(t *testing.T) {
	dir := t.TempDir()
	put := func(version, content string) {
		t.Helper()
		steps := []error{
			os.Mkdir(filepath.Join(dir, version), 0o700),
			os.WriteFile(filepath.Join(dir, version, "pods.yaml"), []byte(content), 0o600),
			os.Symlink(version, filepath.Join(dir, "..data_tmp")),
			os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")),
		}
		for _, err := range steps {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	put("..1", pod("a"))
	if err := os.Symlink("..data/pods.yaml", filepath.Join(dir, "pods.yaml")); err != nil {
		t.Fatal(err)
	}
	r := run(t, dir)
	r.want([]string{"Pod/a"})
	put("..2", pod("b"))
	if err := os.RemoveAll(filepath.Join(dir, "..1")); err != nil {
		t.Fatal(err)
	}
	r.want([]string{"Pod/b"})
	if err := os.RemoveAll(filepath.Join(dir, "..2")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	r.want([]string{"Pod/b"}, "pods.yaml: not taken: a symbolic link that leads nowhere; its 1 objects from before stay")
}

// The folder itself may be a link that is turned, be away, and come back.
func TestFolderIsReplaced(t *testing.T) {
	base := t.TempDir()
	link := filepath.Join(base, "link")
	for name, content := range map[string]string{"one": pod("a"), "two": pod("b")} {
		if err := os.Mkdir(filepath.Join(base, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(base, name, "f.yaml"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := run(t, link)
	r.want(nil, "cannot read the folder")
	select {
	case <-r.f.Synced():
		t.Error("synced though there is no folder")
	default:
	}
	if err := os.Symlink("one", link); err != nil {
		t.Fatal(err)
	}
	r.want([]string{"Pod/a"})
	<-r.f.Synced()
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(base, "one", "f.yaml")); err != nil { // wakes the watch on the old folder
		t.Fatal(err)
	}
	r.want([]string{"Pod/a"}, "cannot read the folder")
	if err := os.Symlink("two", link); err != nil {
		t.Fatal(err)
	}
	r.want([]string{"Pod/b"})
}

func TestOddFiles(t *testing.T) {
	dir := t.TempDir()
	r := run(t, dir)
	if err := os.Mkdir(filepath.Join(dir, "folder.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.want(nil, "folder.yaml: not taken: not a regular file")
}

// Two writes of one length within the coarseness of file times are told apart.
func TestQuickRewrite(t *testing.T) {
	dir := t.TempDir()
	s := newScanner(dir, func(string, []string) {})
	path := filepath.Join(dir, "f.yaml")
	now := time.Now()
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(path, []byte(pod(name)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now, now); err != nil {
			t.Fatal(err)
		}
		changed, err := s.scan(now.Add(time.Millisecond))
		if err != nil || !changed {
			t.Fatalf("scan = %v, %v, want a change", changed, err)
		}
		if got := s.files["f.yaml"].objects[0].key.name; got != name {
			t.Errorf("pod %s, want %s", got, name)
		}
	}
	// An unchanged file is read once more when its times can be trusted, then no more.
	for i, want := range []bool{true, true} {
		changed, err := s.scan(now.Add(time.Minute))
		if err != nil || changed || s.files["f.yaml"].trusted != want {
			t.Errorf("scan %d: changed %v, err %v, trusted %v", i, changed, err, s.files["f.yaml"].trusted)
		}
	}
}
