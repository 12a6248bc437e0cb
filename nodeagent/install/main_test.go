package install_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/install"
)

// patience is how long a test waits for something that must come.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if root := os.Getenv(childEnv); root != "" {
		if err := childInstaller(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	nstest.Main(m)
}

const (
	confDir = "/etc/cni/net.d"
	binDir  = "/opt/cni/bin"
)

// calico is a primary's list, laid out as no marshaller would.
const calico = `{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "x-big": 12345678901234567890,
  "plugins": [
    {"type": "calico", "mtu": 0, "ipam": {"type": "calico-ipam"}},
    {
      "type": "portmap", "snat": true,
      "capabilities": {"portMappings": true}
    }
  ]
}
`

const flannelConf = `{"cniVersion":"0.4.0", "name":"cbr0", "type":"flannel",  "delegate":{"isDefaultGateway":true}}`

// host is a folder that stands for a host's root.
type host struct {
	t    *testing.T
	root string
}

func newHost(t *testing.T) *host {
	h := &host{t, t.TempDir()}
	for _, dir := range []string{confDir, binDir, "/var/lib/warren"} {
		h.must(os.MkdirAll(h.path(dir), 0o755))
	}
	for _, plugin := range []string{"calico", "portmap", "flannel", "bridge", "multus"} {
		h.write(binDir+"/"+plugin, "#!/bin/false\n")
	}
	return h
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) path(p string) string    { return filepath.Join(h.root, p) }
func (h *host) conf(name string) string { return h.path(confDir + "/" + name) }

func (h *host) write(path, content string) {
	h.t.Helper()
	h.must(os.WriteFile(h.path(path), []byte(content), 0o644))
}

// writeConf puts a configuration in place as a careful CNI does.
func (h *host) writeConf(name, content string) {
	h.t.Helper()
	tmp := h.conf(name + ".tmp")
	h.must(os.WriteFile(tmp, []byte(content), 0o600))
	h.must(os.Rename(tmp, h.conf(name)))
}

func (h *host) read(name string) string {
	h.t.Helper()
	b, err := os.ReadFile(h.conf(name))
	h.must(err)
	return string(b)
}

func (h *host) gone(path string) {
	h.t.Helper()
	if _, err := os.Lstat(h.path(path)); !errors.Is(err, fs.ErrNotExist) {
		h.t.Errorf("%s is there (%v)", path, err)
	}
}

// confs are the names in the folder of configurations.
func (h *host) confs() []string {
	h.t.Helper()
	entries, err := os.ReadDir(h.path(confDir))
	h.must(err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// plugins are the types in a file, as libcni reads it.
func (h *host) plugins(name string) []string {
	h.t.Helper()
	list, err := libcni.ConfListFromFile(h.conf(name))
	h.must(err)
	var types []string
	for _, p := range list.Plugins {
		types = append(types, p.Network.Type)
	}
	return types
}

// runtime reads the folder as containerd does: the first file, and no other.
func (h *host) runtime() (name string, types []string, err error) {
	files, err := libcni.ConfFiles(h.path(confDir), []string{".conf", ".conflist", ".json"})
	if err != nil || len(files) == 0 {
		return "", nil, err
	}
	slices.Sort(files)
	var list *libcni.NetworkConfigList
	if strings.HasSuffix(files[0], ".conflist") {
		list, err = libcni.ConfListFromFile(files[0])
	} else {
		var conf *libcni.NetworkConfig
		//lint:ignore SA1019 containerd and CRI-O read single configurations so
		if conf, err = libcni.ConfFromFile(files[0]); err == nil {
			list, err = libcni.ConfListFromConf(conf) //lint:ignore SA1019 as above
		}
	}
	if err != nil {
		return filepath.Base(files[0]), nil, err
	}
	for _, p := range list.Plugins {
		types = append(types, p.Network.Type)
	}
	return filepath.Base(files[0]), types, nil
}

// wantRuntime fails unless a runtime runs just these plugins, from that file.
func (h *host) wantRuntime(name string, types ...string) {
	h.t.Helper()
	gotName, got, err := h.runtime()
	if err != nil || gotName != name || !slices.Equal(got, types) {
		h.t.Errorf("a runtime runs %v of %s (%v), want %v of %s; there are %v", got, gotName, err, types, name, h.confs())
	}
}

func entry() conflist.Entry {
	return conflist.Entry{RunDir: "/run/warren", StateDir: "/var/lib/warren", Namespace: "warren-system"}
}

// config is one with short delays.
func (h *host) config(t *testing.T) install.Config {
	return install.Config{
		HostRoot: h.root, CNIConfDir: confDir, CNIBinDir: binDir, Chained: true,
		PluginBinary: pluginBinary(t), PluginConfig: entry(), StateDir: h.path("/var/lib/warren"),
		Times: install.Times{Poll: 50 * time.Millisecond, Settle: 50 * time.Millisecond, Linger: 50 * time.Millisecond, Leave: 20 * time.Millisecond},
	}
}

func (h *host) installer(edit ...func(*install.Config)) *install.Installer {
	h.t.Helper()
	cfg := h.config(h.t)
	for _, e := range edit {
		e(&cfg)
	}
	i, err := install.New(cfg)
	h.must(err)
	return i
}

func ownFile(c *install.Config) { c.Chained = false }

// run runs an installer until the test ends, or stop is called.
func (h *host) run(i *install.Installer) (stop func()) {
	ctx, cancel := testContext(h.t)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := i.Run(ctx); err != nil {
			h.t.Errorf("Run: %v", err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	h.t.Cleanup(stop)
	return stop
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

func wantPhase(t *testing.T, i *install.Installer, want install.Phase, words ...string) {
	t.Helper()
	s := i.State()
	if s.Phase != want {
		t.Errorf("state is %q, want %s", s, want)
	}
	for _, w := range words {
		if !strings.Contains(s.String(), w) {
			t.Errorf("state %q says nothing of %q", s, w)
		}
	}
}

// pluginBinary is a small program of this machine, which stands for the plugin
// where nobody runs it.
func pluginBinary(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// otherBinary is another one: it has a few bytes more.
func otherBinary(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(pluginBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), conflist.Type)
	if err := os.WriteFile(path, append(b, "more"...), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func testContext(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), 2*patience)
}
