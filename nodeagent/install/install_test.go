package install_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/nodeagent/install"
)

// Each way of chaining, from nothing to installed and back: what the primary
// wrote is there again byte for byte.
func TestInstallAndLeave(t *testing.T) {
	for _, tc := range []struct {
		name    string
		own     bool
		files   map[string]string
		target  string
		runs    []string
		touched string // the file that is changed
	}{
		{name: "a list", files: map[string]string{"10-calico.conflist": calico},
			target: "10-calico.conflist", runs: []string{"calico", "portmap", "warren-cni"}, touched: "10-calico.conflist"},
		{name: "a single configuration", files: map[string]string{"10-flannel.conf": flannelConf},
			target: "10-flannel-warren.conflist", runs: []string{"flannel", "warren-cni"}},
		{name: "a .json", files: map[string]string{"10-flannel.json": flannelConf},
			target: "10-flannel-warren.conflist", runs: []string{"flannel", "warren-cni"}},
		{name: "two networks", files: map[string]string{"10-calico.conflist": calico, "87-podman.conflist": strings.Replace(calico, "calico", "bridge", 1)},
			target: "10-calico.conflist", runs: []string{"calico", "portmap", "warren-cni"}, touched: "10-calico.conflist"},
		{name: "own file", own: true, files: map[string]string{"10-calico.conflist": calico},
			target: install.OwnConfName, runs: []string{"calico", "portmap", "warren-cni"}},
		{name: "own file for a single configuration", own: true, files: map[string]string{"10-flannel.conf": flannelConf},
			target: install.OwnConfName, runs: []string{"flannel", "warren-cni"}},
		{name: "own file before multus alone", own: true, files: map[string]string{"00-multus.conf": `{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus"}`},
			target: install.OwnConfName, runs: []string{"multus", "warren-cni"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t)
			for name, content := range tc.files {
				h.writeConf(name, content)
			}
			before := h.confs()
			i := h.installer(func(c *install.Config) { c.Chained = !tc.own })
			i.Round()
			wantPhase(t, i, install.Installed, tc.target)
			h.wantRuntime(tc.target, tc.runs...)
			for name, content := range tc.files {
				if name != tc.touched && h.read(name) != content {
					t.Errorf("%s was changed:\n%s", name, h.read(name))
				}
			}
			if info, err := os.Stat(h.conf(tc.target)); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: mode %v, %v; the primary's is 0600", tc.target, info.Mode(), err)
			}
			changes := i.State().Changes
			i.Round()
			if s := i.State(); s.Changes != changes || s.Repairs != 0 {
				t.Errorf("a second round changed something: %+v", s)
			}

			h.must(i.Uninstall(t.Context()))
			wantPhase(t, i, install.Removed)
			for name, content := range tc.files {
				if got := h.read(name); got != content {
					t.Errorf("%s is now\n%s\nand was\n%s", name, got, content)
				}
			}
			if after := h.confs(); !slices.Equal(before, after) {
				t.Errorf("the folder has now %v, and had %v", after, before)
			}
			h.gone(binDir + "/warren-cni")
			h.gone("/var/lib/warren")
			i.Round()
			h.gone(binDir + "/warren-cni") // it does not come back
		})
	}
}

// The entry is what the plugin wants, and the list has nothing else of ours.
func TestEntry(t *testing.T) {
	h := newHost(t)
	h.writeConf("10-calico.conflist", calico)
	h.installer().Round()
	want, err := conflist.Add([]byte(calico), entry())
	h.must(err)
	if got := h.read("10-calico.conflist"); got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestNoPrimaryYet(t *testing.T) {
	for _, chained := range []bool{true, false} {
		h := newHost(t)
		i := h.installer(func(c *install.Config) { c.Chained = chained })
		h.run(i)
		eventually(t, "waiting", func() bool { return i.State().Phase == install.Waiting })
		wantPhase(t, i, install.Waiting, "primary CNI", "pods that need a network wait too")
		if confs := h.confs(); len(confs) > 0 {
			t.Errorf("made %v with no primary there", confs)
		}
		h.writeConf("10-calico.conflist", calico)
		eventually(t, "installed", func() bool { return i.State().Phase == install.Installed })
	}
}

func TestFoldersMissing(t *testing.T) {
	h := newHost(t)
	h.must(os.RemoveAll(h.path("/etc/cni")))
	i := h.installer()
	h.run(i)
	eventually(t, "waiting", func() bool { return i.State().Phase == install.Waiting })
	wantPhase(t, i, install.Waiting, confDir, "platform")
	h.must(os.MkdirAll(h.path(confDir), 0o755))
	h.writeConf("10-calico.conflist", calico)
	eventually(t, "installed", func() bool { return i.State().Phase == install.Installed })
	h.must(os.Rename(h.path(binDir), h.path(binDir+".old")))
	eventually(t, "told that plugins are gone", func() bool { return i.State().Phase != install.Installed })
	h.must(os.MkdirAll(h.path(binDir), 0o755))
	h.write(binDir+"/calico", "")
	eventually(t, "installed again", func() bool { return i.State().Phase == install.Installed })
	if i.State().Repairs == 0 {
		t.Error("no repair was counted")
	}
}

// A primary whose plugins are elsewhere: this node's runtime would not find ours.
func TestWrongBinDir(t *testing.T) {
	h := newHost(t)
	h.writeConf("10-calico.conflist", strings.ReplaceAll(strings.ReplaceAll(calico, `"calico"`, `"cilium-cni"`), `"portmap"`, `"other"`))
	i := h.installer()
	i.Round()
	wantPhase(t, i, install.Failed, "cilium-cni", binDir)
	h.wantRuntime("10-calico.conflist", "cilium-cni", "other")
	i = h.installer(func(c *install.Config) { c.AnyBinDir = true })
	i.Round()
	wantPhase(t, i, install.Installed)
}

func TestBinary(t *testing.T) {
	h := newHost(t)
	h.writeConf("10-calico.conflist", calico)
	installed := h.path(binDir + "/" + conflist.Type)
	same := func(path string) bool {
		want, err := os.ReadFile(path)
		h.must(err)
		got, err := os.ReadFile(installed)
		return err == nil && bytes.Equal(got, want)
	}

	// An older one, which is running meanwhile.
	sleep, err := exec.LookPath("sleep")
	h.must(err)
	old, err := os.ReadFile(sleep)
	h.must(err)
	h.must(os.WriteFile(installed, old, 0o755))
	cmd := exec.Command(installed, "1000")
	h.must(cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	i := h.installer()
	i.Round()
	if !same(pluginBinary(t)) {
		t.Fatal("the binary was not replaced")
	}
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the one that was running has ended: %v", err)
	}
	info, err := os.Stat(installed)
	h.must(err)
	if info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v", info.Mode())
	}

	for name, damage := range map[string]func() error{
		"removed":     func() error { return os.Remove(installed) },
		"cut":         func() error { return os.Truncate(installed, 10) },
		"not for all": func() error { return os.Chmod(installed, 0o644) },
		"a link":      func() error { _ = os.Remove(installed); return os.Symlink("/nowhere", installed) },
		"a folder's":  func() error { _ = os.Remove(installed); return os.Symlink(".", installed) },
	} {
		h.must(damage())
		i.Round()
		if !same(pluginBinary(t)) {
			t.Errorf("%s: not put back; %s", name, i.State())
		}
		wantPhase(t, i, install.Installed)
		if info, err := os.Lstat(installed); err != nil || info.Mode() != 0o755 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if got := i.State().Repairs; got != 5 {
		t.Errorf("%d repairs were counted, want 5", got)
	}

	// The next version, and back.
	next := otherBinary(t)
	i = h.installer(func(c *install.Config) { c.PluginBinary = next })
	i.Round()
	if !same(next) {
		t.Error("the next version was not installed")
	}
	h.installer().Round()
	if !same(pluginBinary(t)) {
		t.Error("the version before was not installed again")
	}
	if left, err := filepath.Glob(h.path(binDir + "/.warren*")); len(left) > 0 || err != nil {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestBinaryOfAnotherMachine(t *testing.T) {
	h := newHost(t)
	b, err := os.ReadFile(pluginBinary(t))
	h.must(err)
	b[18] = 0xf7 // e_machine: none that Go knows
	foreign := filepath.Join(t.TempDir(), "warren-cni")
	h.must(os.WriteFile(foreign, b, 0o755))
	for _, path := range []string{foreign, "/etc/passwd", "/nonexistent"} {
		cfg := h.config(t)
		cfg.PluginBinary = path
		if _, err := install.New(cfg); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s (on %s): error %v", path, runtime.GOARCH, err)
		}
	}
}

// What an older version of us left is replaced: another entry, a copy of another
// name, the other way of chaining.
func TestUpgrade(t *testing.T) {
	h := newHost(t)
	old, err := conflist.Add([]byte(calico), conflist.Entry{RunDir: "/old"})
	h.must(err)
	h.writeConf("10-calico.conflist", string(old))
	i := h.installer()
	i.Round()
	want, err := conflist.Add([]byte(calico), entry())
	h.must(err)
	if got := h.read("10-calico.conflist"); got != string(want) {
		t.Errorf("the older entry became\n%s", got)
	}

	named := func(name string) func(*install.Config) {
		return func(c *install.Config) { c.Chained, c.OwnConfName = false, name }
	}
	h.installer(named("01-old.conflist")).Round()
	h.wantRuntime("01-old.conflist", "calico", "portmap", "warren-cni")
	if got := h.read("10-calico.conflist"); got != calico {
		t.Errorf("the primary's file still is\n%s", got)
	}
	h.installer(ownFile).Round()
	h.wantRuntime(install.OwnConfName, "calico", "portmap", "warren-cni")
	h.gone(confDir + "/01-old.conflist")
	i = h.installer()
	i.Round()
	h.wantRuntime("10-calico.conflist", "calico", "portmap", "warren-cni")
	h.gone(confDir + "/" + install.OwnConfName)
	wantPhase(t, i, install.Installed)

	// On upgrade everything stays: Run ends, and that is all.
	h.run(i)()
	h.wantRuntime("10-calico.conflist", "calico", "portmap", "warren-cni")
}

func TestNamedPrimary(t *testing.T) {
	h := newHost(t)
	h.writeConf("05-other.conflist", strings.Replace(calico, "calico", "bridge", 1))
	named := func(c *install.Config) { c.ConfName = "10-calico.conflist" }
	i := h.installer(named)
	i.Round()
	wantPhase(t, i, install.Waiting, "10-calico.conflist")
	h.writeConf("10-calico.conflist", calico)
	i.Round()
	// It is chained, and the runtime takes another file: that is said.
	wantPhase(t, i, install.Failed, "05-other.conflist", "10-calico.conflist")
	if got := h.plugins("10-calico.conflist"); !slices.Contains(got, "warren-cni") {
		t.Errorf("plugins %v", got)
	}
	i = h.installer(named, ownFile)
	i.Round()
	h.wantRuntime(install.OwnConfName, "calico", "portmap", "warren-cni")
	wantPhase(t, i, install.Installed)
}

// What cannot be understood stays as it is, and is named with the reason.
func TestLeftAlone(t *testing.T) {
	for _, tc := range []struct{ name, file, content, want string }{
		{"half a file", "10-calico.conflist", calico[:len(calico)/2], "unexpected"},
		{"empty", "10-calico.conflist", "", "unexpected"},
		{"no plugins", "10-calico.conflist", `{"name":"n","cniVersion":"1.0.0","plugins":[]}`, "no plugins"},
		{"plugins in a folder", "10-calico.conflist", `{"name":"n","cniVersion":"1.1.0"}`, "neither"},
		{"a version that our plugin does not speak", "10-calico.conflist", strings.Replace(calico, "0.3.1", "0.2.0", 1), `version "0.2.0"`},
		{"a list in a .conf", "10-calico.conf", calico, "type"},
		{"too big", "10-calico.conflist", strings.Repeat(" ", 1<<20) + calico, "more than"},
	} {
		for _, own := range []bool{false, true} {
			h := newHost(t)
			h.writeConf(tc.file, tc.content)
			i := h.installer(func(c *install.Config) { c.Chained = !own })
			h.run(i)
			eventually(t, tc.name+": told", func() bool {
				s := i.State()
				return (s.Phase == install.Failed || s.Phase == install.Waiting) && strings.Contains(s.String(), tc.want) && strings.Contains(s.String(), tc.file)
			})
			if h.read(tc.file) != tc.content {
				t.Errorf("%s: changed to\n%s", tc.name, h.read(tc.file))
			}
			if confs := h.confs(); len(confs) != 1 {
				t.Errorf("%s: the folder has %v", tc.name, confs)
			}
		}
	}
}

// A broken file before the primary's is passed over only when it stays so.
func TestBrokenBefore(t *testing.T) {
	h := newHost(t)
	h.writeConf("10-calico.conflist", calico)
	h.write(confDir+"/05-new.conflist", calico[:100])
	i := h.installer(func(c *install.Config) { c.Times.Settle = patience })
	i.Round()
	wantPhase(t, i, install.Waiting, "05-new.conflist", "whole")
	if h.read("10-calico.conflist") != calico {
		t.Error("the file behind it was taken at once")
	}
	i = h.installer()
	h.run(i)
	eventually(t, "passed over", func() bool { return slices.Contains(h.plugins("10-calico.conflist"), "warren-cni") })
	eventually(t, "told", func() bool { return i.State().Phase == install.Degraded })
	wantPhase(t, i, install.Degraded, "05-new.conflist")
	h.writeConf("05-new.conflist", strings.Replace(calico, "calico", "bridge", 1))
	eventually(t, "the new primary is chained", func() bool { return i.State().Phase == install.Installed })
	h.wantRuntime("05-new.conflist", "bridge", "portmap", "warren-cni")
	if h.read("10-calico.conflist") != calico {
		t.Errorf("the old one is left as\n%s", h.read("10-calico.conflist"))
	}
}

// Links lead where they lead on the host, and not out of its root.
func TestLinks(t *testing.T) {
	h := newHost(t)
	outside := t.TempDir()
	h.must(os.WriteFile(filepath.Join(outside, "10-calico.conflist"), []byte(calico), 0o644))
	h.must(os.RemoveAll(h.path("/etc/cni")))
	h.must(os.Symlink(outside, h.path("/etc/cni")))
	i := h.installer()
	i.Round()
	wantPhase(t, i, install.Waiting)
	if b, err := os.ReadFile(filepath.Join(outside, "10-calico.conflist")); err != nil || string(b) != calico {
		t.Errorf("a file outside of the host's root was changed: %v\n%s", err, b)
	}

	// Absolute ones are the host's.
	h.must(os.Remove(h.path("/etc/cni")))
	h.must(os.MkdirAll(h.path("/data/v2/net.d"), 0o755))
	h.must(os.MkdirAll(h.path("/etc/cni"), 0o755))
	h.must(os.Symlink("/data/v2", h.path("/data/current")))
	h.must(os.Symlink("/../data/current/net.d", h.path(confDir)))
	h.must(os.WriteFile(h.path("/data/v2/net.d/10-calico.conflist"), []byte(calico), 0o644))
	i.Round()
	wantPhase(t, i, install.Installed)
	list, err := libcni.ConfListFromFile(h.path("/data/v2/net.d/10-calico.conflist"))
	if err != nil || len(list.Plugins) != 3 {
		t.Errorf("%v, %v", list, err)
	}
}

// A primary's file that is a link is another's: it gets a copy beside it.
func TestLinkedFile(t *testing.T) {
	h := newHost(t)
	h.must(os.MkdirAll(h.path("/usr/share/cni"), 0o755))
	h.write("/usr/share/cni/x.conflist", calico)
	h.must(os.Symlink("/usr/share/cni/x.conflist", h.conf("10-calico.conflist")))
	i := h.installer()
	i.Round()
	wantPhase(t, i, install.Installed)
	if got := h.plugins("10-calico-warren.conflist"); !slices.Equal(got, []string{"calico", "portmap", "warren-cni"}) {
		t.Errorf("plugins %v", got)
	}
	if b, err := os.ReadFile(h.path("/usr/share/cni/x.conflist")); err != nil || string(b) != calico {
		t.Errorf("what the link leads to was changed: %v\n%s", err, b)
	}
	if to, err := os.Readlink(h.conf("10-calico.conflist")); err != nil || to != "/usr/share/cni/x.conflist" {
		t.Errorf("the link is %s, %v", to, err)
	}
}

func TestConfigMistakes(t *testing.T) {
	h := newHost(t)
	cfg := h.config(t)
	cfg.CNIConfDir, cfg.ConfName, cfg.OwnConfName, cfg.StateDir = "etc", "../x.conflist", "own.conf", "/var"
	cfg.PluginConfig = conflist.Entry{RunDir: "run", LogLevel: "loud", WithoutAgent: "maybe", Namespace: "A"}
	_, err := install.New(cfg)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`"etc"`, "../x.conflist", "own.conf", `"/var"`, "runDir", "logLevel", "withoutAgent", "namespace"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error says nothing of %s: %v", want, err)
		}
	}
}

func TestPlatforms(t *testing.T) {
	for _, p := range install.Platforms() {
		got, err := install.PlatformNamed(p.Name)
		if err != nil || got != p {
			t.Errorf("%s: %+v, %v", p.Name, got, err)
		}
		if !filepath.IsAbs(p.CNIConfDir) || !filepath.IsAbs(p.CNIBinDir) {
			t.Errorf("%+v", p)
		}
	}
	if p, err := install.PlatformNamed(""); err != nil || p.Name != install.DefaultPlatform {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := install.PlatformNamed("vms"); err == nil || !strings.Contains(err.Error(), "k3s") {
		t.Errorf("error %v names no platform that there is", err)
	}
}
