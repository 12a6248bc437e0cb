package cni_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

// The built plugin, run by the runtimes' own library behind the reference
// plugins, in namespaces.
func TestLibcni(t *testing.T) {
	bins := build(t)
	for name, test := range map[string]func(*testing.T, string){
		"versions and verbs":            testVersions,
		"pods that are none of ours":    testLeftAlone,
		"agent away":                    testAgentAway,
		"bootstrap":                     testBootstrap,
		"deletions":                     testDeletions,
		"no iptables":                   testNoIPTables,
		"agent killed":                  testAgentKilled,
		"plugin killed":                 testPluginKilled,
		"agent refuses":                 testAgentRefuses,
		"a failure keeps earlier rules": testFailureKeepsEarlierRules,
		"a netns that vanishes":         testNetnsVanishes,
		"wrong netns":                   testWrongNetns,
		"check finds drift":             testCheckFindsDrift,
		"gc":                            testGC,
		"prevResult byte for byte":      testPrevResult,
		"errors on stdout":              testErrorOnStdout,
	} {
		t.Run(name, func(t *testing.T) {
			nstest.LeakCheck(t)
			test(t, bins)
		})
	}
}

func testVersions(t *testing.T, bins string) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			n := newNode(t, bins, version, "")
			f := n.agent(&event.Fake{OnAdd: redirectAll, OnCheck: func(event.Key) (event.Answer, error) { return redirectSo(), nil }})
			p := n.pod("app")
			ctx := testContext(t)
			if err := n.cni().GetStatusNetworkList(ctx, n.list); err != nil {
				t.Errorf("STATUS: %v", err)
			}
			res := n.mustAdd(p)
			wantRules(t, p.ns, "redirected")
			checkAdd(t, f, p, res)

			// Once more: our plugin alone, because bridge refuses.
			prev := rawResult(t, n, p)
			out, err := n.run("ADD", p.rt, n.entry(version, `, "prevResult": `+prev))
			if err != nil || string(out) != prev {
				t.Errorf("second ADD: %v\ngot  %s\nwant %s", err, out, prev)
			}
			wantRules(t, p.ns, "redirected")
			if version != "0.3.1" { // it has no CHECK
				if err := n.cni().CheckNetworkList(ctx, n.list, p.rt); err != nil {
					t.Errorf("CHECK: %v", err)
				}
			}
			key := types.GCAttachment{ContainerID: p.rt.ContainerID, IfName: p.rt.IfName}
			if err := n.cni().GCNetworkList(ctx, n.list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{key}}); err != nil {
				t.Errorf("GC: %v", err)
			}
			for range 2 {
				if err := n.del(p); err != nil {
					t.Errorf("DEL: %v", err)
				}
			}
			want := map[string][]string{
				"0.3.1": {"Add", "Programmed by plugin", "Add", "Programmed by plugin", "Del", "Del"},
				"0.4.0": {"Add", "Programmed by plugin", "Add", "Programmed by plugin", "Check", "Del", "Del"},
				"1.0.0": {"Add", "Programmed by plugin", "Add", "Programmed by plugin", "Check", "Del", "Del"},
				"1.1.0": {"Status", "Add", "Programmed by plugin", "Add", "Programmed by plugin", "Check", "GC", "Del", "Del"},
			}[version]
			if diff := cmp.Diff(want, verbs(f)); diff != "" {
				t.Errorf("the agent was asked (-want +got):\n%s", diff)
			}
		})
	}
}

// checkAdd compares what the agent was told with what the runtime got.
func checkAdd(t *testing.T, f *event.Fake, p *pod, res types.Result) {
	t.Helper()
	result, err := types100.NewResultFromResult(res)
	if err != nil {
		t.Fatal(err)
	}
	var add event.FakeCall
	for _, c := range f.Calls() {
		if c.Verb == "Add" {
			add = c
		}
	}
	if len(result.IPs) != 2 || len(add.Add.IPs) != 2 {
		t.Fatalf("addresses: result %v, agent %v; want two each", result.IPs, add.Add.IPs)
	}
	for i, ip := range result.IPs {
		if ip.Address.String() != add.Add.IPs[i].String() {
			t.Errorf("address %s, the agent was told %s", ip.Address.String(), add.Add.IPs[i])
		}
	}
	got := add.Add
	got.IPs = nil
	want := event.Add{
		Version: event.Version, Key: event.Key{ContainerID: "c0ffee", IfName: "eth0"}, Network: "test",
		PodName: "a-1", PodNamespace: "app", PodUID: "11111111-2222-3333-4444-555555555555", Netns: p.rt.NetNS,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("add (-want +got):\n%s", diff)
	}
	if add.NS != p.ns.ID() {
		t.Errorf("the agent got namespace %s, the pod's is %s", add.NS, p.ns.ID())
	}
}

// rawResult is the result of an ADD as the runtime cached it.
func rawResult(t *testing.T, n *node, p *pod) string {
	t.Helper()
	res, err := n.cni().GetNetworkListCachedResult(n.list, p.rt)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func testLeftAlone(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	f := n.agent(&event.Fake{})
	p := n.pod("elsewhere")
	n.mustAdd(p)
	wantRules(t, p.ns, "nothing")
	if err := n.cni().CheckNetworkList(testContext(t), n.list, p.rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if got := verbs(f); !slices.Equal(got, []string{"Add", "Check"}) {
		t.Errorf("the agent was asked %v", got)
	}
	// Not a pod at all: nobody is asked.
	other := n.pod("")
	other.rt.ContainerID, other.rt.Args = "podman", [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", ""}}
	n.mustAdd(other)
	if got := verbs(f); len(got) != 2 {
		t.Errorf("the agent was asked %v", got)
	}
}

func testAgentAway(t *testing.T, bins string) {
	away := event.Away{Namespaces: map[string]string{"out": event.NSOut, "in": event.NSIn, "mixed": event.NSMixed}}
	for _, tc := range []struct {
		name, entry, namespace string
		file                   bool
		code                   uint // 0: admitted
		text                   string
	}{
		{"out", "", "out", true, 0, ""},
		{"in", "", "in", true, types.ErrTryAgainLater, "namespace in is in the mesh"},
		{"mixed", "", "mixed", true, types.ErrTryAgainLater, "namespace mixed may be"},
		{"unknown", "", "new", true, types.ErrTryAgainLater, "namespace new is newer"},
		{"unknown, allowed", `, "withoutAgent": "allow"`, "new", true, 0, ""},
		{"in, though allowed", `, "withoutAgent": "allow"`, "in", true, types.ErrTryAgainLater, "is in the mesh"},
		{"no file", "", "out", false, types.ErrTryAgainLater, "has left no decisions"},
		{"no file, refused", `, "withoutAgent": "refuse"`, "out", false, types.ErrTryAgainLater, "has left no decisions"},
		{"no file, allowed", `, "withoutAgent": "allow"`, "in", false, 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, bins, "1.1.0", tc.entry)
			if tc.file {
				if err := event.WriteAway(filepath.Join(n.state(), event.AwayName), away); err != nil {
					t.Fatal(err)
				}
			}
			p := n.pod(tc.namespace)
			_, err := n.add(testContext(t), p)
			if tc.code == 0 && err != nil {
				t.Error(err)
			} else if tc.code != 0 {
				wantCode(t, err, tc.code, "the node agent is away", tc.text)
			}
			wantRules(t, p.ns, "nothing")
			_, err = n.run("CHECK", p.rt, n.entry("1.1.0", tc.entry+`, "prevResult": {"cniVersion": "1.1.0"}`))
			if tc.file && tc.namespace == "out" {
				if err != nil {
					t.Errorf("CHECK: %v", err)
				}
			} else {
				wantCode(t, err, types.ErrTryAgainLater, "the node agent is away")
			}
			if err := n.del(p); err != nil {
				t.Errorf("DEL: %v", err)
			}
		})
	}
}

// With agent and proxy deleted both still come up: the runtime finds the
// network ready, and their pods are admitted.
func testBootstrap(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", `, "namespace": "mesh-system"`)
	if err := n.cni().GetStatusNetworkList(testContext(t), n.list); err == nil {
		t.Error("STATUS succeeds though no pod could be admitted")
	} else {
		wantCode(t, err, 50, "no pod can be admitted")
	}
	if err := event.WriteAway(filepath.Join(n.state(), event.AwayName), event.Away{Namespaces: map[string]string{"app": event.NSIn}}); err != nil {
		t.Fatal(err)
	}
	if err := n.cni().GetStatusNetworkList(testContext(t), n.list); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	p := n.pod("mesh-system")
	n.mustAdd(p)
	if err := n.cni().CheckNetworkList(testContext(t), n.list, p.rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if err := n.del(p); err != nil {
		t.Errorf("DEL: %v", err)
	}
	if tombs, err := event.Tombstones(n.state()); err != nil || len(tombs) > 0 {
		t.Errorf("tombstones %v, %v: nobody knows that pod", tombs, err)
	}
	allow := newNode(t, bins, "1.1.0", `, "withoutAgent": "allow"`)
	if err := allow.cni().GetStatusNetworkList(testContext(t), allow.list); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	// An agent that is there but cannot decide is no better than none.
	n.agent(&event.Fake{OnStatus: func() error { return errors.New("no view of the pods yet") }})
	if err := n.cni().GetStatusNetworkList(testContext(t), n.list); err != nil {
		t.Errorf("STATUS: %v", err)
	}
}

func testDeletions(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	never := &pod{rt: runtimeConf("", "app")}
	never.rt.ContainerID = "never"
	if err := n.del(never); err != nil {
		t.Errorf("without ADD, netns and agent: %v", err)
	}
	tombs, err := event.Tombstones(n.state())
	want := []event.Tombstone{{Key: event.Key{ContainerID: "never", IfName: "eth0"}, PodUID: "11111111-2222-3333-4444-555555555555"}}
	if err != nil || !slices.Equal(tombs, want) {
		t.Errorf("tombstones %v, %v; want %v", tombs, err, want)
	}

	f := n.agent(&event.Fake{})
	if err := n.del(never); err != nil {
		t.Errorf("without ADD and netns: %v", err)
	}
	gone := &pod{rt: runtimeConf("/nowhere/netns", "app")}
	if err := n.del(gone); err != nil {
		t.Errorf("with a netns that is gone: %v", err)
	}
	if got := verbs(f); !slices.Equal(got, []string{"Del", "Del"}) {
		t.Errorf("the agent was asked %v", got)
	}
	f.Change(func(f *event.Fake) {
		f.OnDel = func(event.Key, string) error { return &event.Error{Msg: "the proxy does not answer"} }
	})
	if err := n.del(gone); err != nil {
		t.Errorf("with an agent that fails: %v", err)
	}
	if tombs, _ := event.Tombstones(n.state()); len(tombs) != 2 {
		t.Errorf("tombstones %v, want one for the failed DEL too", tombs)
	}

	// A configuration that is wrong must not keep pods from going.
	if _, err := n.run("DEL", never.rt, n.entry("1.1.0", `, "withoutAgent": "maybe", "logFile": 5`)); err != nil {
		t.Errorf("with a wrong configuration: %v", err)
	}
}

func testNoIPTables(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	f := n.agent(&event.Fake{OnAdd: redirectAll, OnCheck: func(event.Key) (event.Answer, error) { return redirectSo(), nil }})
	t.Setenv("PATH", "")
	p := n.pod("app")
	n.mustAdd(p)
	if err := n.cni().CheckNetworkList(testContext(t), n.list, p.rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if got := verbs(f); !slices.Equal(got, []string{"Add", "Programmed by plugin", "Check"}) {
		t.Errorf("the agent was asked %v", got)
	}
	wantRules(t, p.ns, "redirected") // by nftables, which needs no program

	// The agent chose one that this host has not, or that this plugin does not know.
	for _, name := range []string{redirect.NameNFT, "quantum"} {
		f.Change(func(f *event.Fake) {
			f.OnAdd = func(context.Context, event.Add, *netns.NS) (event.Answer, error) {
				a := redirectSo()
				a.Redirect.Backend = name
				return a, nil
			}
		})
		if _, err := n.run("ADD", p.rt, n.entry("1.1.0", `, "prevResult": {"cniVersion": "1.1.0"}`)); err != nil {
			t.Error(err)
		}
		if got := verbs(f); got[len(got)-1] != "Programmed by agent" {
			t.Errorf("%s: the agent was asked %v", name, got)
		}
	}
}

// startAgent runs an agent that is never done, in a process of its own.
func startAgent(t *testing.T, n *node) (cmd *exec.Cmd, said *bufio.Scanner) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), agentEnv+"="+n.socket())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	said = bufio.NewScanner(out)
	if !said.Scan() || said.Text() != "ready" {
		t.Fatalf("the agent said %q, %v", said.Text(), said.Err())
	}
	return cmd, said
}

func testAgentKilled(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	agent, said := startAgent(t, n)
	p := n.pod("app")
	go func() {
		if said.Scan() { // the rules are in place
			agent.Process.Kill()
		}
	}()
	_, err := n.add(testContext(t), p)
	wantCode(t, err, types.ErrTryAgainLater, "went away before it was done")
	wantRules(t, p.ns, "nothing")
	if err := n.del(p); err != nil {
		t.Errorf("DEL: %v", err)
	}
	if tombs, _ := event.Tombstones(n.state()); len(tombs) != 1 {
		t.Errorf("tombstones %v, want one", tombs)
	}
	// The runtime tries again, and the agent is back.
	f := n.agent(&event.Fake{OnAdd: redirectAll})
	n.mustAdd(p)
	wantRules(t, p.ns, "redirected")
	if got := verbs(f); !slices.Equal(got, []string{"Add", "Programmed by plugin"}) {
		t.Errorf("the agent was asked %v", got)
	}
}

func testPluginKilled(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	ctx, kill := context.WithCancel(testContext(t))
	ended := make(chan error, 1)
	n.agent(&event.Fake{OnAdd: redirectAll, OnProgrammed: func(ctx context.Context, _ string) error {
		kill() // libcni kills the plugin
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return ctx.Err()
	}})
	p := n.pod("app")
	if _, err := n.add(ctx, p); err == nil {
		t.Error("no error")
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "plugin is gone") {
		t.Errorf("the agent's work ended because: %v", err)
	}
}

func testAgentRefuses(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	f := n.agent(&event.Fake{
		OnAdd: redirectAll,
		OnProgrammed: func(context.Context, string) error {
			return &event.Error{Retryable: true, Msg: "no proxy", Details: "wait"}
		},
	})
	p := n.pod("app")
	_, err := n.add(testContext(t), p)
	wantCode(t, err, types.ErrTryAgainLater, "no proxy")
	wantRules(t, p.ns, "nothing")
	f.Change(func(f *event.Fake) {
		f.OnProgrammed = func(context.Context, string) error { return &event.Error{Msg: "never", Details: "give up"} }
	})
	_, err = n.run("ADD", p.rt, n.entry("1.1.0", `, "prevResult": {"cniVersion": "1.1.0"}`))
	wantCode(t, err, types.ErrInternal, "never")
}

// The second ADD of a running pod fails: its rules must stay, or it would go on
// in plaintext.
func testFailureKeepsEarlierRules(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	f := n.agent(&event.Fake{OnAdd: redirectAll})
	p := n.pod("app")
	n.mustAdd(p)
	f.Change(func(f *event.Fake) {
		f.OnProgrammed = func(context.Context, string) error { return errors.New("no proxy") }
	})
	if _, err := n.run("ADD", p.rt, n.entry("1.1.0", `, "prevResult": {"cniVersion": "1.1.0"}`)); err == nil {
		t.Error("no error")
	}
	wantRules(t, p.ns, "redirected")
}

func testNetnsVanishes(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	_, path := nstest.NewNS(t, "pod")
	f := n.agent(&event.Fake{OnAdd: func(context.Context, event.Add, *netns.NS) (event.Answer, error) {
		return redirectSo(), unix.Unmount(path, unix.MNT_DETACH)
	}})
	rt := runtimeConf(path, "app")
	// The descriptor keeps the namespace alive for as long as the call lasts.
	if _, err := n.run("ADD", rt, n.entry("1.1.0", `, "prevResult": {"cniVersion": "1.1.0"}`)); err != nil {
		t.Errorf("vanished in the middle: %v", err)
	}
	_, err := n.run("ADD", rt, n.entry("1.1.0", `, "prevResult": {"cniVersion": "1.1.0"}`))
	wantCode(t, err, types.ErrInvalidNetNS, path)
	if _, err := n.run("DEL", rt, n.entry("1.1.0", "")); err != nil {
		t.Errorf("DEL: %v", err)
	}
	if got := verbs(f); !slices.Equal(got, []string{"Add", "Programmed by plugin", "Del"}) {
		t.Errorf("the agent was asked %v", got)
	}
}

func testWrongNetns(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	f := n.agent(&event.Fake{OnAdd: redirectAll})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		"/proc/self/ns/net": "the plugin itself runs in", // never the host's, whatever the runtime says
		"/proc/self/ns/pid": "not a network namespace",
		file:                "not a network namespace",
		"/nowhere":          "no such file",
	} {
		_, err := n.run("ADD", runtimeConf(path, "app"), n.entry("1.1.0", `, "prevResult": {"cniVersion": "1.1.0"}`))
		wantCode(t, err, types.ErrInvalidNetNS, text)
	}
	if got := verbs(f); len(got) > 0 {
		t.Errorf("the agent was asked %v", got)
	}
}

func testCheckFindsDrift(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	f := n.agent(&event.Fake{OnAdd: redirectAll, OnCheck: func(event.Key) (event.Answer, error) { return redirectSo(), nil }})
	p := n.pod("app")
	n.mustAdd(p)
	b, err := redirect.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.StopCapture(p.ns); err != nil {
		t.Fatal(err)
	}
	wantCode(t, n.cni().CheckNetworkList(testContext(t), n.list, p.rt), types.ErrInternal, "not what the node agent set up", "WARREN_OUTPUT")
	f.Change(func(f *event.Fake) {
		f.OnCheck = func(event.Key) (event.Answer, error) {
			return event.Answer{}, &event.Error{Msg: "the proxy has lost it", Details: "restart the pod"}
		}
	})
	wantCode(t, n.cni().CheckNetworkList(testContext(t), n.list, p.rt), types.ErrInternal, "lost it")
}

func testGC(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	rt := &libcni.RuntimeConf{}
	const valid = `[{"containerID": "a", "ifname": "eth0"}]`
	_, err := n.run("GC", rt, n.entry("1.1.0", `, "cni.dev/valid-attachments": `+valid))
	wantCode(t, err, types.ErrTryAgainLater, "away")
	f := n.agent(&event.Fake{})
	for _, more := range []string{
		`, "cni.dev/valid-attachments": ` + valid, `, "cni.dev/attachments": ` + valid,
		`, "cni.dev/valid-attachments": []`, "", `, "cni.dev/valid-attachments": null`,
	} {
		if _, err := n.run("GC", rt, n.entry("1.1.0", more)); err != nil {
			t.Errorf("%s: %v", more, err)
		}
	}
	keys := []event.Key{{ContainerID: "a", IfName: "eth0"}}
	want := []event.FakeCall{
		{Verb: "GC", Network: "test", Valid: keys}, {Verb: "GC", Network: "test", Valid: keys}, {Verb: "GC", Network: "test", Valid: []event.Key{}},
	} // and nothing is collected when the runtime says nothing
	if diff := cmp.Diff(want, f.Calls()); diff != "" {
		t.Errorf("the agent was asked (-want +got):\n%s", diff)
	}
}

func testPrevResult(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	n.agent(&event.Fake{OnAdd: redirectAll})
	p := n.pod("app")
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		prev := fmt.Sprintf(`{ "zeta": 12345678901234567890.123456789, "cniVersion": %q,
  "interfaces": [{"name": "eth0", "sandbox": "/x", "mtu": 1e3, "\u00e9<>": null}, {"name": "br0"}],
	"ips": [{"version": "4", "address": "10.1.0.3/24", "interface": 0, "new": [1, 2, {}]}, {"version": "4", "address": "10.9.9.9/32", "interface": 1}],
  "routes": [], "zeta2": 18446744073709551616, "alpha": true }`, version)
		out, err := n.run("ADD", p.rt, n.entry(version, `, "prevResult": `+prev))
		if err != nil {
			t.Errorf("%s: %v", version, err)
		}
		if diff := cmp.Diff(prev, string(out)); diff != "" {
			t.Errorf("%s: not byte for byte (-want +got):\n%s", version, diff)
		}
	}
	// One of another version, as no runtime should send, is converted.
	out, err := n.run("ADD", p.rt, n.entry("1.1.0", `, "prevResult": {"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.1.0.3/24"}]}`))
	if err != nil || !strings.Contains(string(out), `"cniVersion": "1.1.0"`) || !strings.Contains(string(out), "10.1.0.3/24") {
		t.Errorf("%v\n%s", err, out)
	}
}

func testErrorOnStdout(t *testing.T, bins string) {
	n := newNode(t, bins, "1.1.0", "")
	p := n.pod("app")
	for _, tc := range []struct {
		verb, stdin string
		code        uint
		texts       []string
	}{
		{"ADD", n.entry("1.0.0", ""), types.ErrInvalidNetworkConfig, []string{"without a prevResult", "chained"}},
		{"ADD", n.entry("1.0.0", `, "prevResult": null`), types.ErrInvalidNetworkConfig, []string{"without a prevResult"}},
		{"CHECK", n.entry("1.0.0", ""), types.ErrInvalidNetworkConfig, []string{"without a prevResult"}},
		{"ADD", n.entry("1.0.0", `, "prevResult": 5`), types.ErrDecodingFailure, []string{"prevResult"}},
		{"ADD", n.entry("1.0.0", `, "prevResult": {"ips": [{"address": "x"}]}`), types.ErrDecodingFailure, []string{"address"}},
		{"ADD", n.entry("1.0.0", `, "prevResult": {}, "withoutAgent": "maybe", "namespace": 7, "logLevel": "loud"`), types.ErrInvalidNetworkConfig,
			[]string{"withoutAgent", "namespace", "logLevel"}},
		{"STATUS", n.entry("1.1.0", `, "logFile": "log"`), types.ErrInvalidNetworkConfig, []string{"logFile"}},
	} {
		cmd := exec.Command(filepath.Join(bins, "warren-cni"))
		cmd.Stdin = strings.NewReader(tc.stdin)
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+tc.verb, "CNI_CONTAINERID=c", "CNI_IFNAME=eth0", "CNI_PATH=/x", "CNI_NETNS="+p.rt.NetNS,
			"CNI_ARGS=K8S_POD_NAME=a;K8S_POD_NAMESPACE=app")
		out, err := cmd.Output()
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%s %s: %v, want exit status 1", tc.verb, tc.stdin, err)
			continue
		}
		var got struct {
			CNIVersion string `json:"cniVersion"`
			types.Error
		}
		if err := json.Unmarshal(out, &got); err != nil {
			t.Errorf("%v: %s", err, out)
			continue
		}
		if !strings.Contains(tc.stdin, fmt.Sprintf(`"cniVersion": %q`, got.CNIVersion)) {
			t.Errorf("version %q in %s", got.CNIVersion, out)
		}
		wantCode(t, &got.Error, tc.code, tc.texts...)
	}
}
