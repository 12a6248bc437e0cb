package install_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/nodeagent/install"
)

// version is the n-th content that a primary writes.
func version(n int) string {
	return strings.Replace(calico, `"mtu": 0`, fmt.Sprintf(`"mtu": %d, "pad": %q`, n, strings.Repeat("x", n%97)), 1)
}

// settled makes rounds until the installer is content.
func settled(t *testing.T, h *host, i *install.Installer) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		i.Round()
		left, err := filepath.Glob(h.conf(".warren*"))
		h.must(err)
		if i.State().Phase == install.Installed && len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("state is %q, the folder has %v", i.State(), h.confs())
		}
	}
}

// wantChained fails unless want is what the primary's file has besides our
// entry, and our entry is where it should be, once, and nowhere else.
func wantChained(t *testing.T, h *host, name, want string, own bool) {
	t.Helper()
	got := h.read(name)
	rest, err := conflist.Remove([]byte(got))
	if err != nil {
		t.Fatalf("%v\n%s", err, got)
	}
	if diff := cmp.Diff(want, string(rest)); diff != "" {
		t.Errorf("something of the primary's is lost (-want +got):\n%s", diff)
	}
	holds, other := name, ""
	if own {
		holds, other = install.OwnConfName, name
	}
	h.wantRuntime(holds, "calico", "portmap", "warren-cni")
	if other != "" && strings.Contains(h.read(other), "warren-cni") {
		t.Errorf("%s has our entry too:\n%s", other, h.read(other))
	}
	if own {
		copied := h.read(holds)
		if !strings.Contains(copied, mtu(want)) {
			t.Errorf("the copy is of an older version:\n%s", copied)
		}
	}
}

// mtu is what tells one version from another.
func mtu(content string) string {
	_, rest, _ := strings.Cut(content, `"mtu": `)
	n, _, _ := strings.Cut(rest, ",")
	return `"mtu": ` + n + ","
}

// primaryWrites are ways in which a primary writes its file, perhaps in two
// steps: the first in the middle of ours, the second after it.
func primaryWrites() map[string]func(h *host, name, content string) (rest func()) {
	open := func(h *host, name string, flags int) *os.File {
		f, err := os.OpenFile(h.conf(name), flags, 0o644)
		h.must(err)
		return f
	}
	return map[string]func(h *host, name, content string) func(){
		"by renaming": func(h *host, name, content string) func() {
			h.writeConf(name, content)
			return nil
		},
		"in place": func(h *host, name, content string) func() {
			h.must(os.WriteFile(h.conf(name), []byte(content), 0o644))
			return nil
		},
		"in place, in two steps": func(h *host, name, content string) func() {
			f := open(h, name, os.O_WRONLY|os.O_TRUNC|os.O_CREATE)
			_, err := f.WriteString(content[:len(content)/2])
			h.must(err)
			return func() {
				_, err := f.WriteString(content[len(content)/2:])
				h.must(errors.Join(err, f.Close()))
			}
		},
		"opened now, written later": func(h *host, name, content string) func() {
			f := open(h, name, os.O_WRONLY|os.O_CREATE)
			return func() {
				h.must(f.Truncate(0))
				_, err := f.WriteString(content)
				h.must(errors.Join(err, f.Close()))
			}
		},
		"by removing and making anew": func(h *host, name, content string) func() {
			h.must(os.Remove(h.conf(name)))
			return func() { h.writeConf(name, content) }
		},
		"twice by renaming": func(h *host, name, content string) func() {
			h.writeConf(name, version(1000))
			h.writeConf(name, content)
			return nil
		},
	}
}

// The primary writes its file at each of our steps, in each way: in the end all
// that it wrote is there, and we are chained.
func TestPrimaryWritesAtEachStep(t *testing.T) {
	t.Run("no exchange", func(t *testing.T) { testWritesAtEachStep(t, true) })
	t.Run("exchange", func(t *testing.T) { testWritesAtEachStep(t, false) })
}

// testWritesAtEachStep may do it on a file system that cannot exchange files.
func testWritesAtEachStep(t *testing.T, unsupported bool) {
	for how, write := range primaryWrites() {
		for _, own := range []bool{false, true} {
			for at := range 8 {
				t.Run(fmt.Sprintf("%s, own %v, step %d", how, own, at), func(t *testing.T) {
					h := newHost(t)
					const name = "10-calico.conflist"
					h.writeConf(name, version(1))
					i := h.installer(func(c *install.Config) { c.Chained = !own })
					var rest func()
					n := 0
					i.SetStep(func(op, _ string) error {
						if n == at {
							rest = write(h, name, version(2))
						}
						n++
						if unsupported && op == "exchange" {
							return errors.ErrUnsupported
						}
						return nil
					})
					i.Round()
					i.SetStep(nil)
					if n <= at { // it has fewer steps: after all of them
						rest = write(h, name, version(2))
					}
					i.Round()
					if rest != nil {
						rest()
					}
					settled(t, h, i)
					wantChained(t, h, name, version(2), own)
				})
			}
		}
	}
}

// The primary writes while we give it its place back, again and again. (What it
// opens in that moment and writes later goes to a file that is gone by then, as
// it would with two writers of its own.)
func TestPrimaryWritesWhilePutBack(t *testing.T) {
	for how, write := range primaryWrites() {
		if how == "opened now, written later" {
			continue
		}
		t.Run(how, func(t *testing.T) {
			h := newHost(t)
			const name = "10-calico.conflist"
			h.writeConf(name, version(1))
			i := h.installer()
			last := 1
			rest := func() {}
			i.SetStep(func(op, _ string) error {
				switch {
				case op == "exchange" && last == 1:
					last++
					h.writeConf(name, version(last))
				case op == "put back" && last < 10:
					rest()
					last++
					if rest = write(h, name, version(last)); rest == nil {
						rest = func() {}
					}
				}
				return nil
			})
			i.Round()
			i.SetStep(nil)
			if last < 3 {
				t.Error("nothing was put back")
			}
			rest()
			settled(t, h, i)
			wantChained(t, h, name, version(last), false)
		})
	}
}

// A disk that is full, or read-only, at each step: the host is as it was or as
// it should be, whatever is there can be read, and it is made good later.
func TestFailsAtEachStep(t *testing.T) {
	for _, failure := range []error{syscall.ENOSPC, syscall.EROFS, syscall.EIO} {
		for _, own := range []bool{false, true} {
			for at := range 8 {
				t.Run(fmt.Sprintf("%v, own %v, step %d", failure, own, at), func(t *testing.T) {
					h := newHost(t)
					const name = "10-calico.conflist"
					h.writeConf(name, version(1))
					i := h.installer(func(c *install.Config) { c.Chained = !own })
					n := 0
					i.SetStep(func(op, name string) error {
						if n++; n > at {
							return failure
						}
						return nil
					})
					i.Round()
					if failed := n > at; failed == i.State().OK() {
						t.Errorf("after %d steps, the last of which failed: %v; state %q", n, failed, i.State())
					}
					if s := i.State(); s.Phase == install.Failed && !strings.Contains(s.String(), failure.Error()) {
						t.Errorf("the state does not say why: %q", s)
					}
					first, types, err := h.runtime()
					if err != nil {
						t.Fatalf("a runtime cannot read %s: %v", first, err)
					}
					if slices.Contains(types, "warren-cni") {
						if _, err := os.Stat(h.path(binDir + "/warren-cni")); err != nil {
							t.Errorf("%s names a binary that is not there", first)
						}
					}
					rest, err := conflist.Remove([]byte(h.read(name)))
					if err != nil || string(rest) != version(1) {
						t.Errorf("the primary's file: %v\n%s", err, rest)
					}
					i.SetStep(nil)
					settled(t, h, i)
					wantChained(t, h, name, version(1), own)
				})
			}
		}
	}
}

// A runtime reads the folder all the time while the primary writes its file
// (atomically: what it breaks itself is not our doing) and our installer works:
// each read gives a list, and the right one in the end.
func TestEveryReadIsValid(t *testing.T) {
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprintf("own %v", own), func(t *testing.T) {
			h := newHost(t)
			const name = "10-calico.conflist"
			h.writeConf(name, version(0))
			var reads, with int
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				for ctx.Err() == nil {
					first, types, err := h.runtime()
					if err != nil {
						t.Errorf("a runtime cannot read %s: %v", first, err)
						return
					}
					reads++
					if slices.Contains(types, "warren-cni") {
						with++
					}
				}
			})
			i := h.installer(func(c *install.Config) { c.Chained = !own })
			stop := h.run(i)
			const last = 300
			for n := 1; n <= last; n++ {
				h.writeConf(name, version(n))
				if n%10 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			eventually(t, "chained to the last", func() bool {
				first, types, err := h.runtime()
				return err == nil && slices.Contains(types, "warren-cni") && strings.Contains(h.read(first), mtu(version(last)))
			})
			cancel()
			wg.Wait()
			stop()
			settled(t, h, h.installer(func(c *install.Config) { c.Chained = !own }))
			wantChained(t, h, name, version(last), own)
			t.Logf("%d reads, %d of them with our plugin", reads, with)
			if own && with == 0 || reads == 0 {
				t.Error("the reader saw nothing")
			}
		})
	}
}

// primary is a CNI that does what it likes with its file.
type primary struct {
	h       *host
	rnd     *rand.Rand
	name    string
	content string
	n       int
}

// act does one thing, in one of many ways, and leaves the file whole.
func (p *primary) act() {
	p.n++
	content := version(p.n)
	switch p.rnd.IntN(6) {
	case 0: // under another name, which may sort before or behind
		next := fmt.Sprintf("%02d-calico.conflist", 10+p.rnd.IntN(3))
		p.h.writeConf(next, content)
		if next != p.name {
			p.h.must(os.Remove(p.h.conf(p.name)))
		}
		p.name = next
	case 1: // half of it, for a while
		f, err := os.Create(p.h.conf(p.name))
		p.h.must(err)
		_, err = f.WriteString(content[:p.rnd.IntN(len(content))])
		p.h.must(err)
		p.pause()
		_, err = f.WriteAt([]byte(content), 0)
		p.h.must(errors.Join(err, f.Close()))
	case 2: // gone for a while
		p.h.must(os.Remove(p.h.conf(p.name)))
		p.pause()
		p.h.writeConf(p.name, content)
	case 3:
		p.h.must(os.WriteFile(p.h.conf(p.name), []byte(content), 0o644))
	default:
		p.h.writeConf(p.name, content)
	}
	p.content = content
}

func (p *primary) pause() { time.Sleep(time.Duration(p.rnd.IntN(4)) * time.Millisecond) }

// Whatever the primary does, and whenever: in the end we are chained once, and
// all that it wrote last is there.
func TestRandomInterleavings(t *testing.T) {
	rounds := 24
	if testing.Short() {
		rounds = 5
	}
	for n := range rounds {
		seed := uint64(time.Now().UnixNano())
		own := n%2 == 1
		t.Run(fmt.Sprintf("seed %d, own %v", seed, own), func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			p := &primary{h: h, rnd: rand.New(rand.NewPCG(seed, 0)), name: "11-calico.conflist", content: version(0)}
			h.writeConf(p.name, p.content)
			i := h.installer(func(c *install.Config) {
				c.Chained = !own
				c.Times.Poll, c.Times.Linger = 10*time.Millisecond, 20*time.Millisecond
			})
			h.run(i)
			for range 40 {
				p.act()
				if p.rnd.IntN(3) == 0 {
					p.pause()
				}
			}
			holds := p.name
			if own {
				holds = install.OwnConfName
			}
			eventually(t, "chained to what came last", func() bool {
				list, err := libcni.ConfListFromFile(h.conf(holds))
				left, globErr := filepath.Glob(h.conf(".warren*"))
				return err == nil && globErr == nil && len(left) == 0 && len(list.Plugins) == 3 && strings.Contains(string(list.Bytes), mtu(p.content))
			})
			eventually(t, "content", func() bool { return i.State().Runs })
			wantChained(t, h, p.name, p.content, own)
			if confs := h.confs(); len(confs) > 2 || !own && len(confs) > 1 {
				t.Errorf("the folder has %v", confs)
			}
		})
	}
}

// A look at a host where nothing has changed, which the poll does.
func BenchmarkRound(b *testing.B) {
	dir := b.TempDir()
	for _, d := range []string{confDir, binDir} {
		if err := os.MkdirAll(dir+d, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	for path, content := range map[string]string{confDir + "/10-calico.conflist": calico, binDir + "/calico": ""} {
		if err := os.WriteFile(dir+path, []byte(content), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	i, err := install.New(install.Config{HostRoot: dir, CNIConfDir: confDir, CNIBinDir: binDir, Chained: true, PluginBinary: pluginBinary(b), PluginConfig: entry()})
	if err != nil {
		b.Fatal(err)
	}
	i.Round()
	for b.Loop() {
		i.Round()
	}
}
