package install_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/install"
)

// fakeCalico is a primary that gives every pod the same address.
const fakeCalico = `#!/bin/sh
cat >/dev/null
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.9.0.2/24","interface":0}]}' ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
esac
`

// node is a host whose plugins can be run.
type node struct {
	*host
	cfg install.Config
}

func newNode(t *testing.T) *node {
	nstest.Require(t)
	dir, err := os.MkdirTemp("", "wi") // short, for the sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := newHost(t)
	plugin := filepath.Join(t.TempDir(), conflist.Type)
	if out, err := exec.Command("go", "build", "-o", plugin, "github.com/warren-mesh/warren/cni/cmd/warren-cni").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h.must(os.WriteFile(h.path(binDir+"/calico"), []byte(fakeCalico), 0o755))
	h.writeConf("10-calico.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"calico"}]}`)
	h.must(os.Chmod(h.path(binDir+"/calico"), 0o755))
	n := &node{h, h.config(t)}
	n.cfg.PluginBinary, n.cfg.StateDir = plugin, dir+"/lib"
	n.cfg.PluginConfig = conflist.Entry{RunDir: dir + "/run", StateDir: dir + "/lib", Namespace: "warren-system", LogLevel: "debug", WithoutAgent: "refuse"}
	return n
}

func (n *node) cni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{n.path(binDir)}, n.path("/cache"),
		&invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}})
}

// list is what a runtime has loaded.
func (n *node) list() *libcni.NetworkConfigList {
	n.t.Helper()
	name, _, err := n.runtime()
	n.must(err)
	list, err := libcni.ConfListFromFile(n.conf(name))
	n.must(err)
	return list
}

// add starts a pod of a namespace.
func (n *node) add(namespace string) error {
	n.t.Helper()
	_, path := nstest.NewNS(n.t, "pod")
	_, err := n.cni().AddNetworkList(n.t.Context(), n.list(), &libcni.RuntimeConf{
		ContainerID: "c-" + namespace, NetNS: path, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", namespace}, {"K8S_POD_NAME", "p"}, {"K8S_POD_UID", "0c7a5d6e-0000-4000-8000-000000000001"}},
	})
	return err
}

// The node is back after a reboot, and our agent is not, nor is the API server:
// by what the installer and the agent left on the disk, pods outside the mesh
// start, those of the mesh's own namespace too, and pods of the mesh wait.
func TestRebootWithoutAgent(t *testing.T) {
	for _, own := range []bool{false, true} {
		n := newNode(t)
		n.cfg.Chained = !own
		i, err := install.New(n.cfg)
		n.must(err)
		i.Round()
		wantPhase(t, i, install.Installed)
		if err := n.add("outside"); err == nil || !strings.Contains(err.Error(), "agent") {
			t.Errorf("own %v: with nothing known, a pod was admitted, or refused without saying why: %v", own, err)
		}
		n.must(event.WriteAway(filepath.Join(n.cfg.StateDir, event.AwayName), event.Away{Namespaces: map[string]string{"outside": event.NSOut, "inside": event.NSIn}}))
		if own { // as a primary does at boot
			n.writeConf("10-calico.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"calico"}]}`)
		}
		for namespace, want := range map[string]string{"outside": "", "warren-system": "", "inside": "namespace inside is in the mesh"} {
			err := n.add(namespace)
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("own %v: a pod of namespace %s: %v, want %q", own, namespace, err, want)
			}
		}
		if err := n.cni().GetStatusNetworkList(t.Context(), n.list()); err != nil {
			t.Errorf("own %v: STATUS: %v", own, err)
		}

		// After leaving, pods start without us; the DEL of one from before works by
		// the list that the runtime has.
		n.must(i.Uninstall(t.Context()))
		if err := n.add("inside"); err != nil {
			t.Errorf("own %v: after leaving: %v", own, err)
		}
	}
}

// The plugin takes every entry that we take: what it refuses would keep all pods
// of the node from starting.
func TestPluginTakesEntries(t *testing.T) {
	n := newNode(t)
	dir := filepath.Dir(n.cfg.StateDir)
	base := n.cfg.PluginConfig
	i, err := install.New(n.cfg)
	n.must(err)
	i.Round()
	n.must(event.WriteAway(filepath.Join(n.cfg.StateDir, event.AwayName), event.Away{}))
	for name, edit := range map[string]func(e *conflist.Entry){
		"empty":         func(e *conflist.Entry) { *e = conflist.Entry{RunDir: dir + "/run", StateDir: dir + "/lib"} },
		"all":           func(e *conflist.Entry) { e.LogFile, e.WithoutAgent = dir+"/x.log", "allow" },
		"slash":         func(e *conflist.Entry) { e.StateDir += "/" },
		"long run dir":  func(e *conflist.Entry) { e.RunDir = "/" + strings.Repeat("r", 97) },
		"too long":      func(e *conflist.Entry) { e.RunDir = "/" + strings.Repeat("r", 98) },
		"not absolute":  func(e *conflist.Entry) { e.LogFile = "x.log" },
		"dots":          func(e *conflist.Entry) { e.StateDir = "/a/../b" },
		"control":       func(e *conflist.Entry) { e.StateDir = "/a\nb" },
		"level":         func(e *conflist.Entry) { e.LogLevel = "INFO" },
		"without":       func(e *conflist.Entry) { e.WithoutAgent = "yes" },
		"namespace":     func(e *conflist.Entry) { e.Namespace = "a.b" },
		"two mistakes":  func(e *conflist.Entry) { e.Namespace, e.LogLevel = "A", "x" },
		"every level w": func(e *conflist.Entry) { e.LogLevel = "warn" },
		"every level e": func(e *conflist.Entry) { e.LogLevel = "error" },
	} {
		e := base
		edit(&e)
		text, err := e.JSON()
		n.must(err)
		list, err := libcni.ConfListFromBytes([]byte(`{"cniVersion":"1.1.0","name":"net","plugins":[` + string(text) + `]}`))
		n.must(err)
		err = n.cni().GetStatusNetworkList(t.Context(), list)
		takes := err == nil || !strings.Contains(err.Error(), "is wrong")
		if ours := e.Validate(); (ours == nil) != takes {
			t.Errorf("%s: we say %v, the plugin says %v", name, ours, err)
		}
	}
}
