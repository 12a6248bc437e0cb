package install

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/internal/hostdir"
)

// inMemory carries a plan out on a list of files.
func inMemory(files []file, p plan) []file {
	set := func(name string, content []byte) {
		files = slices.DeleteFunc(files, func(f file) bool { return f.name == name })
		if content != nil {
			f := classify(name, content, hostdir.Info{}, nil)
			f.brokenFor = time.Hour
			files = append(files, f)
		}
	}
	if p.content != nil {
		set(p.target, p.content)
	}
	for _, e := range p.strip {
		set(e.base.name, e.content)
	}
	for _, name := range p.remove {
		set(name, nil)
	}
	slices.SortFunc(files, func(a, b file) int { return bytes.Compare([]byte(a.name), []byte(b.name)) })
	return files
}

// Whatever is in two files: the plan makes nothing that a runtime cannot read,
// keeps all that is not ours, puts our entry into one file once, and after it
// there is nothing more to do.
func FuzzPlan(f *testing.F) {
	list := `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]}`
	for _, s := range [][2]string{
		{list, ``}, {`{`, list}, {`{"type":"a"}`, list}, {`{"type":"multus","name":"m"}`, list}, {list, `{"warrenCopyOf":"x","cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},{"type":"warren-cni"}]}`},
		{`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"warren-cni"}]}`, list}, {`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},{"type":"istio-cni"}]}`, `{"type":"istio-cni"}`},
		{list, `{"cniVersion":"1.0.0","name":"","type":"linkerd-cni"}`},
		// An odd space between two plugins, of which ours goes.
		{list, `{"cniVersion":"1.0.0","name":"n","plugins":[ {"type":"a"},{"type":"warren-cni"}]}`},
		{list, `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}, {"type":"warren-cni"}]}`},
		{list, `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"} ,{"type":"warren-cni"}]}`},
	} {
		f.Add([]byte(s[0]), []byte(s[1]), true, ".conf", "")
		f.Add([]byte(s[0]), []byte(s[1]), false, ".conflist", "20-b.conflist")
		f.Add([]byte(s[0]), []byte(s[1]), true, ".conflist", "20-b.conflist")
	}
	f.Fuzz(func(t *testing.T, first, second []byte, chained bool, ext, named string) {
		if ext != ".conf" && ext != ".json" {
			ext = ".conflist"
		}
		var files []file
		for name, data := range map[string][]byte{"10-a" + ext: first, "20-b.conflist": second} {
			if data == nil {
				continue
			}
			files = inMemory(files, plan{target: name, content: append([]byte{}, data...)})
		}
		s := scene{
			files: files, dir: "/etc", confName: named, chained: chained, own: OwnConfName, bins: "/bin",
			hasBin: func(string) bool { return true }, entry: conflist.Entry{RunDir: "/run"}, settle: time.Second, lostFor: time.Hour,
		}
		before := slices.Clone(files)
		p := s.plan()
		after := inMemory(slices.Clone(files), p)
		if p.content != nil {
			if err := readable(p.target, p.content); err != nil {
				t.Fatalf("made what no runtime reads: %v\n%s", err, p.content)
			}
		}
		holders := 0
		for _, f := range after {
			if f.has() && (f.kind != guest || f.name == p.target) {
				holders++
			}
		}
		if p.target != "" && holders != 1 && len(p.problems) == 0 {
			t.Fatalf("%d files hold our entry: %+v", holders, p)
		}
		for _, was := range before {
			i := slices.IndexFunc(after, func(f file) bool { return f.name == was.name })
			if i < 0 {
				if was.kind != ours && !was.ourName(OwnConfName) {
					t.Fatalf("%s was removed", was.name)
				}
				continue
			}
			if was.kind == broken && !bytes.Equal(was.data, after[i].data) && !was.ourName(OwnConfName) {
				t.Fatalf("%s was broken and was changed", was.name)
			}
		}
		s.files = after
		if again := s.plan(); again.content != nil || len(again.strip)+len(again.remove) > 0 {
			t.Fatalf("a second plan does more: %+v\nfirst: %+v", again, p)
		}
	})
}

func TestParseSwapped(t *testing.T) {
	good := swapped{now: hash([]byte("a")), was: hash([]byte("b")), of: "10-x-y.swap.conflist"}
	for _, linked := range []bool{false, true} {
		good.linked = linked
		if got, ok := parseSwapped(good.name()); !ok || got != good {
			t.Errorf("%s: %+v, %v", good.name(), got, ok)
		}
		if runtimeReads(good.name()) {
			t.Errorf("runtimes read %s", good.name())
		}
	}
	h := good.now
	for _, bad := range []string{"", "x", ".warren-cni-", ".warren-cni-" + h + "-" + h + ".swap", ".warren-cni-" + h + "-" + h + "-x.swap", ".warren-cni-" + h + "-" + h + "-a/b.conf.swap", ".warren-cni-" + h + "-z-x.conf.swap", h + "-" + h + "-x.conf.swap", newTmp()} {
		if got, ok := parseSwapped(bad); ok {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}
