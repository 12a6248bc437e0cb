package cni_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/warren-mesh/warren/cni"
	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

const patience = 20 * time.Second

const (
	// agentEnv makes the test binary an agent at that socket, to be killed.
	agentEnv = "WARREN_CNI_TEST_AGENT"
	// pluginEnv makes the test binary a plugin that lives so long at most.
	pluginEnv = "WARREN_CNI_TEST_PLUGIN"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(agentEnv); path != "" {
		if err := hangingAgent(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if d, err := time.ParseDuration(os.Getenv(pluginEnv)); err == nil {
		os.Exit(cni.MainWithin("test", d))
	}
	nstest.Main(m)
}

// hangingAgent decides, and is never done. It says on stdout where it is.
func hangingAgent(path string) error {
	f := &event.Fake{
		OnAdd: func(context.Context, event.Add, *netns.NS) (event.Answer, error) { return redirectSo(), nil },
		OnProgrammed: func(ctx context.Context, _ string) error {
			fmt.Println("programmed")
			<-ctx.Done()
			return ctx.Err()
		},
	}
	ready := make(chan struct{})
	go func() { <-ready; fmt.Println("ready") }()
	return f.Run(context.Background(), path, ready)
}

func redirectSo() event.Answer {
	c := redirect.Defaults()
	return event.Answer{Action: event.RedirectSo, Redirect: &event.Redirect{IPv6: true, ProbeIP4: c.ProbeIP4, ProbeIP6: c.ProbeIP6}}
}

func redirectAll(context.Context, event.Add, *netns.NS) (event.Answer, error) {
	return redirectSo(), nil
}

// build puts the plugin, and those that it is chained behind, into a folder.
func build(t *testing.T) string {
	t.Helper()
	nstest.Require(t)
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir+"/",
		"github.com/warren-mesh/warren/cni/cmd/warren-cni",
		"github.com/containernetworking/plugins/plugins/main/bridge",
		"github.com/containernetworking/plugins/plugins/ipam/host-local")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// node is where a runtime runs plugins.
type node struct {
	t    *testing.T
	bins string
	dir  string
	ns   *netns.NS
	list *libcni.NetworkConfigList
}

// newNode writes a conflist of the version, with what else our entry has.
func newNode(t *testing.T, bins, version, entry string) *node {
	t.Helper()
	ns, _ := nstest.NewNS(t, "node")
	n := &node{t: t, bins: bins, dir: t.TempDir(), ns: ns}
	conf := fmt.Sprintf(`{"cniVersion": %q, "name": "test", "plugins": [
		{"type": "bridge", "bridge": "br0", "isGateway": true, "ipam": {"type": "host-local", "dataDir": %q,
			"ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]}},
		{"type": "warren-cni", "runDir": %q, "stateDir": %q %s}]}`, version, n.dir+"/ipam", n.dir, n.state(), entry)
	list, err := libcni.ConfListFromBytes([]byte(conf))
	if err != nil {
		t.Fatal(err)
	}
	n.list = list
	return n
}

func (n *node) socket() string { return filepath.Join(n.dir, event.SocketName) }
func (n *node) state() string  { return filepath.Join(n.dir, "state") }

func (n *node) cni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{n.bins}, n.dir+"/cache", nodeExec{
		DefaultExec: &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: &testWriter{n.t}}}, ns: n.ns,
	})
}

// nodeExec starts plugins in the node's namespace.
type nodeExec struct {
	*invoke.DefaultExec
	ns *netns.NS
}

func (e nodeExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) (out []byte, err error) {
	err = e.ns.Do(func() error {
		out, err = e.DefaultExec.ExecPlugin(ctx, path, stdin, env)
		return err
	})
	return out, err
}

// testWriter logs what plugins say on stderr.
type testWriter struct{ t *testing.T }

func (w *testWriter) Write(p []byte) (int, error) {
	w.t.Logf("plugin: %s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// agent runs a fake agent on the node until the test ends.
func (n *node) agent(f *event.Fake) *event.Fake {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- f.Run(ctx, n.socket(), ready) }()
	select {
	case <-ready:
	case err := <-ended:
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			n.t.Error(err)
		}
	})
	return f
}

// pod is a sandbox for the runtime to add.
type pod struct {
	ns *netns.NS
	rt *libcni.RuntimeConf
}

func (n *node) pod(namespace string) *pod {
	n.t.Helper()
	ns, path := nstest.NewNS(n.t, "pod")
	return &pod{ns: ns, rt: runtimeConf(path, namespace)}
}

func runtimeConf(path, namespace string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: "c0ffee", NetNS: path, IfName: "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", namespace}, {"K8S_POD_NAME", "a-1"},
			{"K8S_POD_INFRA_CONTAINER_ID", "c0ffee"}, {"K8S_POD_UID", "11111111-2222-3333-4444-555555555555"},
		},
	}
}

func (n *node) add(ctx context.Context, p *pod) (types.Result, error) {
	return n.cni().AddNetworkList(ctx, n.list, p.rt)
}

func (n *node) mustAdd(p *pod) types.Result {
	n.t.Helper()
	res, err := n.add(testContext(n.t), p)
	if err != nil {
		n.t.Fatal(err)
	}
	return res
}

func (n *node) del(p *pod) error {
	return n.cni().DelNetworkList(testContext(n.t), n.list, p.rt)
}

// run calls our plugin alone, as the runtime would after the others.
func (n *node) run(verb string, rt *libcni.RuntimeConf, stdin string) ([]byte, error) {
	args := &invoke.Args{Command: verb, ContainerID: rt.ContainerID, NetNS: rt.NetNS, PluginArgs: rt.Args, IfName: rt.IfName, Path: n.bins}
	return nodeExec{DefaultExec: &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: &testWriter{n.t}}}, ns: n.ns}.
		ExecPlugin(testContext(n.t), filepath.Join(n.bins, "warren-cni"), []byte(stdin), args.AsEnv())
}

// entry is our plugin's configuration for run.
func (n *node) entry(version, more string) string {
	return fmt.Sprintf(`{"cniVersion": %q, "name": "test", "type": "warren-cni", "runDir": %q, "stateDir": %q %s}`, version, n.dir, n.state(), more)
}

// rules says what of ours is in the namespace: "redirected", "nothing", or what
// is between.
func rules(t *testing.T, ns *netns.NS) string {
	t.Helper()
	b, err := redirect.Detect()
	if err != nil {
		t.Fatal(err)
	}
	diffs, err := b.Verify(ns, redirect.Defaults())
	if err != nil {
		t.Fatal(err)
	}
	if len(diffs) == 0 {
		return "redirected"
	}
	var dump strings.Builder
	for _, program := range []string{"iptables-save", "ip6tables-save"} {
		cmd := exec.Command(program)
		cmd.Stdout = &dump
		if err := errors.Join(ns.Do(cmd.Start), cmd.Wait()); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(dump.String(), "WARREN") {
		return "nothing"
	}
	return strings.Join(diffs, "; ")
}

func wantRules(t *testing.T, ns *netns.NS, want string) {
	t.Helper()
	if got := rules(t, ns); got != want {
		t.Errorf("in the pod: %s; want %s", got, want)
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// wantCode wants a CNI error of the code that contains the texts and says what
// to do.
func wantCode(t *testing.T, err error, code uint, texts ...string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) {
		t.Errorf("error %v, want a CNI error of code %d", err, code)
		return
	}
	if e.Code != code || e.Details == "" {
		t.Errorf("error of code %d with details %q, want code %d and advice: %v", e.Code, e.Details, code, e)
	}
	for _, text := range texts {
		if !strings.Contains(e.Msg, text) {
			t.Errorf("error %q, want one with %q", e.Msg, text)
		}
	}
}

func verbs(f *event.Fake) (vs []string) {
	for _, c := range f.Calls() {
		v := c.Verb
		if c.How != "" {
			v += " by " + c.How
		}
		vs = append(vs, v)
	}
	return vs
}
