package install_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/nodeagent/install"
)

const (
	istioEntry = `{"type": "istio-cni", "name": "istio-cni", "ambient_enabled": true}`
	multusConf = `{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus","delegates":[DELEGATE]}`
)

// withPlugin is calico's list with one more plugin, at its end.
func withPlugin(list, plugin string) string {
	i := strings.LastIndex(list, "\n  ]")
	return list[:i] + ",\n    " + plugin + list[i:]
}

// The primary's file is gone: our copy keeps pods in the mesh until there is
// another one, and that is told.
func TestPrimaryGone(t *testing.T) {
	h := newHost(t)
	h.writeConf("10-calico.conflist", calico)
	i := h.installer(ownFile)
	i.Round()
	h.must(os.Remove(h.conf("10-calico.conflist")))
	i.Round()
	wantPhase(t, i, install.Degraded, install.OwnConfName, "waiting for the primary CNI")
	h.wantRuntime(install.OwnConfName, "calico", "portmap", "warren-cni")

	// Another agent, after a reboot before the primary is up, does the same.
	i = h.installer(ownFile)
	i.Round()
	wantPhase(t, i, install.Degraded, install.OwnConfName)
	h.wantRuntime(install.OwnConfName, "calico", "portmap", "warren-cni")

	// Another network's file is taken for the primary's only after a while: some
	// write by removing and making anew.
	i = h.installer(ownFile, func(c *install.Config) { c.Times.Settle = patience })
	h.writeConf("87-podman.conflist", strings.Replace(calico, "calico", "bridge", 1))
	i.Round()
	h.wantRuntime(install.OwnConfName, "calico", "portmap", "warren-cni")
	wantPhase(t, i, install.Degraded, "10-calico.conflist", "87-podman.conflist")
	i = h.installer(ownFile)
	h.run(i)
	eventually(t, "taken", func() bool { return i.State().Phase == install.Installed })
	h.wantRuntime(install.OwnConfName, "bridge", "portmap", "warren-cni")
}

// Nothing tells of changes but the poll.
func TestPoll(t *testing.T) {
	h := newHost(t)
	h.writeConf("10-calico.conflist", calico)
	i := h.installer()
	i.Round()
	h.writeConf("10-calico.conflist", version(1))
	h.must(os.Remove(h.path(binDir + "/warren-cni")))
	i.Round() // no watch in it
	wantPhase(t, i, install.Installed)
	wantChained(t, h, "10-calico.conflist", version(1), false)
	if got := i.State().Repairs; got != 2 {
		t.Errorf("%d repairs, want 2", got)
	}
}

// Changes are seen at once when they can be: the poll is an hour away.
func TestWatch(t *testing.T) {
	h := newHost(t)
	h.writeConf("10-calico.conflist", calico)
	i := h.installer(func(c *install.Config) { c.Times.Poll = time.Hour })
	h.run(i)
	installed := func() bool {
		_, types, err := h.runtime()
		return err == nil && slices.Contains(types, "warren-cni")
	}
	// When nothing lies beside the primary's file, nothing but the poll is due.
	quiet := func() {
		eventually(t, "quiet", func() bool {
			left, err := filepath.Glob(h.conf(".*"))
			return installed() && err == nil && len(left) == 0
		})
	}
	quiet()
	h.writeConf("10-calico.conflist", version(1))
	eventually(t, "put back by rename", installed)
	quiet()
	h.must(os.WriteFile(h.conf("10-calico.conflist"), []byte(version(2)), 0o644))
	eventually(t, "put back in place", installed)
	quiet()
	h.must(os.Remove(h.path(binDir + "/warren-cni")))
	eventually(t, "binary", func() bool { _, err := os.Stat(h.path(binDir + "/warren-cni")); return err == nil })
	eventually(t, "all well", func() bool { return i.State().OK() })
}

// Somebody wants to be the only one: it goes on, not as fast as it can, and the
// state says what to do.
func TestContested(t *testing.T) {
	h := newHost(t)
	cilium := strings.Replace(calico, `"calico"`, `"cilium-cni"`, 1)
	h.writeConf("05-cilium.conflist", cilium)
	i := h.installer()
	for range 8 {
		i.Round()
		h.writeConf("05-cilium.conflist", cilium)
	}
	i.Round()
	wantPhase(t, i, install.Degraded, "somebody else undid our change", "cni.exclusive=false")
}

func TestMultus(t *testing.T) {
	for _, own := range []bool{false, true} {
		h := newHost(t)
		h.writeConf("10-calico.conflist", calico)
		h.writeConf("00-multus.conf", strings.Replace(multusConf, "DELEGATE", calico, 1))
		i := h.installer(func(c *install.Config) { c.Chained = !own })
		i.Round()
		// Multus goes on coming first; what it reads is chained.
		wantPhase(t, i, install.Failed, "00-multus.conf", "10-calico.conflist")
		if got := h.plugins("10-calico.conflist"); !slices.Equal(got, []string{"calico", "portmap", "warren-cni"}) {
			t.Errorf("plugins %v", got)
		}
		// Multus sees that and makes its file anew.
		h.writeConf("00-multus.conf", strings.Replace(multusConf, "DELEGATE", h.read("10-calico.conflist"), 1))
		i.Round()
		wantPhase(t, i, install.Installed, "00-multus.conf")

		// When we leave it has to do so again; until then the binary stays.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := i.Uninstall(ctx); err == nil || !strings.Contains(err.Error(), "00-multus.conf") {
			t.Errorf("error %v does not name multus' file", err)
		}
		if _, err := os.Stat(h.path(binDir + "/warren-cni")); err != nil {
			t.Errorf("the binary that multus' file names is gone: %v", err)
		}
		if h.read("10-calico.conflist") != calico {
			t.Errorf("left\n%s", h.read("10-calico.conflist"))
		}
		h.writeConf("00-multus.conf", strings.Replace(multusConf, "DELEGATE", calico, 1))
		h.must(i.Uninstall(t.Context()))
		h.gone(binDir + "/warren-cni")
	}
}

// Istio's plugin is chained in the same list: each keeps its place, and neither
// undoes what the other does.
func TestBesideIstio(t *testing.T) {
	h := newHost(t)
	h.write(binDir+"/istio-cni", "")
	h.writeConf("10-calico.conflist", withPlugin(calico, istioEntry))
	i := h.installer()
	i.Round()
	h.wantRuntime("10-calico.conflist", "calico", "portmap", "istio-cni", "warren-cni")
	if s := i.State(); s.Istio != "10-calico.conflist" || s.IstioFollows {
		t.Errorf("Istio's plugin, before ours: %+v", s)
	}

	// Istio's agent puts its entry last again.
	without, err := conflist.Add([]byte(calico), entry())
	h.must(err)
	h.writeConf("10-calico.conflist", withPlugin(string(without), istioEntry))
	changes := i.State().Changes
	i.Round()
	h.wantRuntime("10-calico.conflist", "calico", "portmap", "warren-cni", "istio-cni")
	if i.State().Changes != changes {
		t.Error("our entry was moved behind Istio's: that would go on for ever")
	}
	if s := i.State(); s.Istio != "10-calico.conflist" || !s.IstioFollows {
		t.Errorf("Istio's plugin, behind ours: %+v", s)
	}

	// With a copy of our own, Istio takes that for the primary's and chains itself
	// there.
	h.writeConf("10-calico.conflist", calico)
	i = h.installer(ownFile)
	i.Round()
	h.wantRuntime(install.OwnConfName, "calico", "portmap", "warren-cni")
	h.writeConf(install.OwnConfName, withPlugin(h.read(install.OwnConfName), istioEntry))
	i.Round()
	h.wantRuntime(install.OwnConfName, "calico", "portmap", "istio-cni", "warren-cni")
	h.writeConf("10-calico.conflist", version(1))
	i.Round()
	h.wantRuntime(install.OwnConfName, "calico", "portmap", "istio-cni", "warren-cni")
	wantPhase(t, i, install.Installed)

	// It leaves: out of the file that it finds, and with its binary.
	h.must(os.Remove(h.path(binDir + "/istio-cni")))
	i.Round()
	h.wantRuntime(install.OwnConfName, "calico", "portmap", "warren-cni")
	if s := i.State(); s.Istio != "" {
		t.Errorf("Istio has left: %+v", s)
	}
	h.must(i.Uninstall(t.Context()))
	h.wantRuntime("10-calico.conflist", "calico", "portmap")
}

// Istio has a file of its own, before the primary's.
func TestBesideIstiosOwnFile(t *testing.T) {
	h := newHost(t)
	h.write(binDir+"/istio-cni", "")
	h.writeConf("10-calico.conflist", calico)
	h.writeConf("02-istio-cni.conflist", withPlugin(calico, istioEntry))
	i := h.installer()
	i.Round()
	wantPhase(t, i, install.Failed, "02-istio-cni.conflist", "10-calico.conflist")
	if got := h.plugins("02-istio-cni.conflist"); slices.Contains(got, "warren-cni") {
		t.Errorf("changed another mesh's file to %v", got)
	}
	i = h.installer(ownFile)
	i.Round()
	h.wantRuntime(install.OwnConfName, "calico", "portmap", "istio-cni", "warren-cni")
	wantPhase(t, i, install.Installed)

	// A file with nothing but another mesh's plugin is nobody's network.
	h.must(os.Remove(h.conf("10-calico.conflist")))
	h.must(os.Remove(h.conf("02-istio-cni.conflist")))
	h.must(os.Remove(h.conf(install.OwnConfName)))
	h.writeConf("zz.conf", istioEntry)
	i.Round()
	wantPhase(t, i, install.Waiting, "primary CNI")
}

// Names that are taken, or that come too late.
func TestOwnNames(t *testing.T) {
	h := newHost(t)
	h.writeConf("10-calico.conflist", calico)
	i := h.installer(ownFile, func(c *install.Config) { c.OwnConfName = "20-warren.conflist" })
	i.Round()
	wantPhase(t, i, install.Failed, "10-calico.conflist", "sorts before")
	h.writeConf("05-x.conflist", strings.Replace(calico, "calico", "bridge", 1))
	i = h.installer(ownFile, func(c *install.Config) { c.OwnConfName, c.ConfName = "05-x.conflist", "10-calico.conflist" })
	i.Round()
	wantPhase(t, i, install.Failed, "05-x.conflist", "somebody else's")
	if got := h.plugins("05-x.conflist"); !slices.Equal(got, []string{"bridge", "portmap"}) {
		t.Errorf("another's file has now %v", got)
	}
}

// Our own copy is damaged: nobody could start a pod.
func TestCopyDamaged(t *testing.T) {
	h := newHost(t)
	h.writeConf("10-calico.conflist", calico)
	i := h.installer(ownFile)
	i.Round()
	for _, damage := range []string{"", "{", `{"name":"x","cniVersion":"1.0.0","plugins":[]}`} {
		h.write(confDir+"/"+install.OwnConfName, damage)
		i.Round()
		h.wantRuntime(install.OwnConfName, "calico", "portmap", "warren-cni")
	}
	// Also one of another name, by an older agent.
	h.write(confDir+"/05-x-warren.conflist", "{")
	i.Round()
	h.gone(confDir + "/05-x-warren.conflist")
	h.write(confDir+"/"+install.OwnConfName, "{")
	h.must(i.Uninstall(t.Context()))
	h.wantRuntime("10-calico.conflist", "calico", "portmap")
}

// What stands in the way of leaving: the binary and the state stay as long as
// somebody may run the plugin.
func TestUninstallFails(t *testing.T) {
	h := newHost(t)
	h.writeConf("10-calico.conflist", calico)
	h.write("/var/lib/warren/away.json", "{}")
	i := h.installer()
	i.Round()
	chained := h.read("10-calico.conflist")
	stays := func(why string) {
		t.Helper()
		for _, p := range []string{binDir + "/warren-cni", "/var/lib/warren/away.json"} {
			if _, err := os.Stat(h.path(p)); err != nil {
				t.Errorf("%s: %s is gone", why, p)
			}
		}
		wantPhase(t, i, install.Failed, "uninstall")
	}
	i.SetStep(func(op, name string) error { return syscall.EROFS })
	if err := i.Uninstall(t.Context()); !errors.Is(err, syscall.EROFS) {
		t.Errorf("error %v", err)
	}
	stays("read-only")
	if h.read("10-calico.conflist") != chained {
		t.Error("the file was changed")
	}
	i.SetStep(nil)
	broken := chained[:len(chained)-5]
	h.write(confDir+"/10-calico.conflist", broken)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := i.Uninstall(ctx); err == nil || !strings.Contains(err.Error(), "10-calico.conflist") {
		t.Errorf("error %v", err)
	}
	stays("broken")
	if h.read("10-calico.conflist") != broken {
		t.Error("a file that cannot be read was changed")
	}
	h.writeConf("10-calico.conflist", chained)
	h.must(i.Uninstall(t.Context()))
	if h.read("10-calico.conflist") != calico {
		t.Errorf("left\n%s", h.read("10-calico.conflist"))
	}
	h.gone(binDir + "/warren-cni")
	h.gone("/var/lib/warren")
	h.must(i.Uninstall(t.Context())) // nothing is there any more
}

// The primary writes while we leave: what it wrote last stays, without us.
func TestUninstallWhilePrimaryWrites(t *testing.T) {
	for how, write := range primaryWrites() {
		for at := range 4 {
			h := newHost(t)
			const name = "10-calico.conflist"
			h.writeConf(name, version(1))
			i := h.installer()
			i.Round()
			n := 0
			var rest func()
			// The primary keeps what others chained, as Istio's agent would.
			kept, err := conflist.Add([]byte(version(2)), entry())
			h.must(err)
			i.SetStep(func(string, string) error {
				if n++; n == at+1 {
					rest = write(h, name, string(kept))
				} else if rest != nil {
					rest()
					rest = nil
				}
				return nil
			})
			_ = i.Uninstall(t.Context()) // the primary may be in the way, for that time
			if rest != nil {
				rest()
			}
			i.SetStep(nil)
			if err := i.Uninstall(t.Context()); err != nil {
				t.Errorf("%s, step %d: %v", how, at, err)
			}
			if got := h.read(name); got != version(2) && (n > at || got != version(1)) {
				t.Errorf("%s, step %d: the file is\n%s", how, at, got)
			}
			if confs := h.confs(); len(confs) != 1 {
				t.Errorf("%s, step %d: left %v", how, at, confs)
			}
		}
	}
}

// A runtime that runs a pod's DEL by the list of its ADD needs the binary.
func TestBinaryKept(t *testing.T) {
	for _, crio := range []bool{false, true} {
		h := newHost(t)
		h.writeConf("10-calico.conflist", calico)
		if crio {
			h.must(os.MkdirAll(h.path("/run/crio"), 0o755))
			h.write("/run/crio/crio.sock", "")
		}
		i := h.installer(func(c *install.Config) { c.KeepBinary = !crio })
		i.Round()
		h.must(i.Uninstall(t.Context()))
		h.wantRuntime("10-calico.conflist", "calico", "portmap")
		if _, err := os.Stat(h.path(binDir + "/warren-cni")); err != nil {
			t.Errorf("CRI-O %v: %v", crio, err)
		}
	}
}

// Things of any kind in the folder hold nothing up.
func TestHostileFolder(t *testing.T) {
	h := newHost(t)
	h.must(syscall.Mkfifo(h.conf("00-pipe.conflist"), 0o644))
	h.must(os.Symlink("01-loop.conflist", h.conf("01-loop.conflist")))
	h.must(os.Symlink("/nowhere", h.conf("02-dangling.conflist")))
	h.must(os.Symlink("/dev/zero", h.conf("03-zero.conflist")))
	h.must(os.Mkdir(h.conf("04-folder.conflist"), 0o755))
	h.must(os.WriteFile(h.conf("05-deep.conflist"), []byte(strings.Repeat("[", 1<<19)), 0o644))
	h.must(os.WriteFile(h.conf("06-nul.conflist"), make([]byte, 1000), 0o644))
	half := ".warren-cni-" + strings.Repeat("x", 100) + ".swap"
	h.must(os.WriteFile(h.conf(half), []byte("?"), 0o644))
	h.writeConf("10-calico.conflist", calico)
	h.must(os.WriteFile(h.conf(strings.Repeat("9", 240)+".conflist"), []byte(calico), 0o644))
	i := h.installer(func(c *install.Config) { c.Times.Settle = time.Nanosecond })
	i.Round()
	i.Round()
	h.gone(confDir + "/" + half)
	wantPhase(t, i, install.Degraded, "00-pipe.conflist", "01-loop.conflist", "03-zero.conflist", "05-deep.conflist", "06-nul.conflist")
	if got := h.plugins("10-calico.conflist"); !slices.Contains(got, "warren-cni") {
		t.Errorf("plugins %v; %s", got, i.State())
	}
	h.must(i.Uninstall(t.Context()))
	if got := h.read("10-calico.conflist"); got != calico {
		t.Errorf("left\n%s", got)
	}
}

func TestLongName(t *testing.T) {
	h := newHost(t)
	name := strings.Repeat("1", 240) + ".conflist"
	h.writeConf2(name, calico)
	i := h.installer()
	i.Round()
	wantPhase(t, i, install.Failed, "too long")
	if h.read(name) != calico {
		t.Error("changed")
	}
	i = h.installer(ownFile)
	i.Round()
	wantPhase(t, i, install.Installed)
}

// writeConf2 is writeConf for names that leave no room for a suffix.
func (h *host) writeConf2(name, content string) {
	h.t.Helper()
	h.must(os.WriteFile(h.conf(name), []byte(content), 0o600))
}

func TestCollector(t *testing.T) {
	h := newHost(t)
	h.writeConf("10-calico.conflist", calico)
	i := h.installer()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(i.Collector())
	i.Round()
	h.writeConf("10-calico.conflist", version(1))
	i.Round()
	families, err := reg.Gather()
	h.must(err)
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	want := map[string]float64{
		"istio_cni_install_ready": 1, "warren_agent_cni_repairs_total": 1,
		"warren_agent_cni_install starting": 0, "warren_agent_cni_install waiting": 0, "warren_agent_cni_install installed": 1,
		"warren_agent_cni_install degraded": 0, "warren_agent_cni_install failed": 0, "warren_agent_cni_install removed": 0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Nothing of ours lies about once it runs.
func TestNothingLeftBehind(t *testing.T) {
	h := newHost(t)
	h.writeConf("10-calico.conflist", calico)
	i := h.installer()
	h.run(i)
	eventually(t, "no file beside the primary's", func() bool {
		left, err := filepath.Glob(h.conf(".*"))
		return i.State().OK() && err == nil && len(left) == 0
	})
}
