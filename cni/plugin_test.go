package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

// backendStub fails or panics where it is told to, and notes what it did.
type backendStub struct {
	redirect.Backend
	verify time.Duration // that Verify takes
	apply  func() error
	did    []string
}

func (b *backendStub) Name() string { return "stub" }

func (b *backendStub) Verify(*netns.NS, redirect.Config) ([]string, error) {
	<-time.After(b.verify)
	return []string{"everything is missing"}, nil
}

func (b *backendStub) Apply(*netns.NS, redirect.Config) error {
	b.did = append(b.did, "apply")
	return b.apply()
}

func (b *backendStub) Remove(*netns.NS) error {
	b.did = append(b.did, "remove")
	return nil
}

// Whatever happens while the plugin programs, it is undone, the agent learns
// of it, and the runtime gets an error; nothing on stdout.
func TestProgrammingFails(t *testing.T) {
	nstest.LeakCheck(t)
	_, path := nstest.NewNS(t, "pod")
	for _, tc := range []struct {
		name   string
		verify time.Duration
		apply  func() error
		code   uint
		text   string
		did    []string
	}{
		{"error", 0, func() error { return errors.New("no such table") }, types.ErrInternal, "no such table", []string{"apply", "remove"}},
		{"out of time", 0, func() error { return context.DeadlineExceeded }, types.ErrTryAgainLater, "program the redirection", []string{"apply", "remove"}},
		{"no time left", 300 * time.Millisecond, func() error { return nil }, types.ErrTryAgainLater, "program the redirection", nil},
		{"panic", 0, func() error { panic("a bug") }, types.ErrInternal, "panicked: a bug", []string{"apply", "remove"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			ready, ended := make(chan struct{}), make(chan error, 1)
			ctx, cancel := context.WithCancel(context.Background())
			f := &event.Fake{OnAdd: func(context.Context, event.Add, *netns.NS) (event.Answer, error) {
				return event.Answer{Action: event.RedirectSo, Redirect: &event.Redirect{}}, nil
			}}
			go func() { ended <- f.Run(ctx, filepath.Join(dir, event.SocketName), ready) }()
			<-ready
			backend := &backendStub{verify: tc.verify, apply: tc.apply}
			var stdout, stderr bytes.Buffer
			p := &Plugin{Stdout: &stdout, Stderr: &stderr, Timeout: 5 * time.Second, Backend: func(string) (redirect.Backend, error) { return backend, nil }}
			if tc.verify > 0 {
				p.Timeout = tc.verify / 2
			}
			conf, err := json.Marshal(map[string]any{
				"cniVersion": "1.1.0", "name": "n", "type": conflist.Type, "runDir": dir, "stateDir": dir, "prevResult": map[string]any{},
			})
			if err != nil {
				t.Fatal(err)
			}
			err = p.Funcs().Add(&skel.CmdArgs{
				ContainerID: "c", IfName: "eth0", Netns: path, Args: "K8S_POD_NAME=a;K8S_POD_NAMESPACE=app", StdinData: conf,
			})
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			var e *types.Error
			if !errors.As(err, &e) || e.Code != tc.code || !strings.Contains(e.Msg, tc.text) || e.Details == "" {
				t.Errorf("error %+v, want code %d, %q and advice", err, tc.code, tc.text)
			}
			if !slices.Equal(backend.did, tc.did) {
				t.Errorf("did %v, want %v", backend.did, tc.did)
			}
			if stdout.Len() > 0 {
				t.Errorf("stdout: %s", &stdout)
			}
			calls := f.Calls()
			if last := calls[len(calls)-1]; last.Verb != "Abort" {
				t.Errorf("the agent was told %+v", last)
			}
			wantRecords(t, stderr.Bytes(), dir)
		})
	}
}

// An agent that hangs is as good as away once the plugin's time is over.
func TestHungAgent(t *testing.T) {
	nstest.LeakCheck(t)
	_, path := nstest.NewNS(t, "pod")
	dir := t.TempDir()
	l, err := event.Listen(filepath.Join(dir, event.SocketName)) // and never accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	away := event.Away{Namespaces: map[string]string{"out": event.NSOut, "in": event.NSIn}}
	if err := event.WriteAway(filepath.Join(dir, event.AwayName), away); err != nil {
		t.Fatal(err)
	}
	for namespace, admitted := range map[string]bool{"out": true, "in": false} {
		var stdout, stderr bytes.Buffer
		p := &Plugin{Stdout: &stdout, Stderr: &stderr, Timeout: 20 * time.Millisecond}
		const prev = `{"cniVersion":"1.1.0"}`
		err = p.Funcs().Add(&skel.CmdArgs{
			ContainerID: "c", IfName: "eth0", Netns: path, Args: "K8S_POD_NAME=a;K8S_POD_NAMESPACE=" + namespace,
			StdinData: fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"n","runDir":%q,"stateDir":%q,"prevResult":%s}`, dir, dir, prev),
		})
		var e *types.Error
		switch {
		case admitted && (err != nil || stdout.String() != prev):
			t.Errorf("%s: %v, printed %q", namespace, err, &stdout)
		case !admitted && (!errors.As(err, &e) || e.Code != types.ErrTryAgainLater || stdout.Len() > 0):
			t.Errorf("%s: %v, printed %q", namespace, err, &stdout)
		}
	}
}

// wantRecords wants JSON on stderr, the same in the file, and the failure in it.
func wantRecords(t *testing.T, stderr []byte, dir string) {
	t.Helper()
	file, err := os.ReadFile(filepath.Join(dir, "warren-cni.log"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file, stderr) {
		t.Errorf("in the file:\n%s\non stderr:\n%s", file, stderr)
	}
	var last map[string]any
	for line := range bytes.Lines(stderr) {
		if err := json.Unmarshal(line, &last); err != nil {
			t.Errorf("%v: %s", err, line)
		}
	}
	if last["msg"] != "failed" || last["pod"] != "app/a" || last["err"] == nil {
		t.Errorf("last record %v", last)
	}
}

func TestParseConfig(t *testing.T) {
	entry, err := conflist.Entry{
		RunDir: "/r", StateDir: "/s", LogFile: "/l/f", LogLevel: "debug", WithoutAgent: "allow", Namespace: "mesh",
	}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	def := defaults()
	inRunDir := def
	inRunDir.RunDir, inRunDir.LogFile = "/r", "/r/warren-cni.log"
	noFile := def
	noFile.LogFile = ""
	for in, want := range map[string]Config{
		`{}`: def,
		`{"runDir": "/r", "runtimeConfig": {}, "dns": {}, "ipam": {}, "x": [1e999]}`: inRunDir,
		`{"logFile": ""}`: noFile,
		string(entry): {
			RunDir: "/r", StateDir: "/s", LogFile: "/l/f", LogLevel: slog.LevelDebug, WithoutAgent: Allow, Namespace: "mesh",
		},
	} {
		got, err := parseConfig([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", in, diff)
		}
	}
}

func TestParseConfigTellsAllMistakes(t *testing.T) {
	got, err := parseConfig([]byte(`{
		"runDir": "relative", "stateDir": "/a/../b", "logFile": 5, "logLevel": "loud", "withoutAgent": "maybe", "namespace": "No!",
		"cni.dev/valid-attachments": [{"containerID": "ok", "ifname": "eth0"}, {"containerID": "../x"}, 7]}`))
	if err == nil {
		t.Fatal("no error")
	}
	for _, key := range []string{"runDir", "stateDir", "logFile", "logLevel", "withoutAgent", "namespace", "valid-attachments"} {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("%s is not in the error:\n%v", key, err)
		}
	}
	if diff := cmp.Diff(defaults(), got); diff != "" {
		t.Errorf("what is left (-want +got):\n%s", diff)
	}
	if _, err := parseConfig([]byte(`{"runDir": "/` + strings.Repeat("x", 100) + `"}`)); err == nil || !strings.Contains(err.Error(), "107 bytes") {
		t.Errorf("error %v", err)
	}
}

func TestParseArgs(t *testing.T) {
	for in, want := range map[string]pod{
		"": {},
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=app;K8S_POD_NAME=a-1;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u": {"a-1", "app", "u"},
		"K8S_POD_NAME=a;K8S_POD_NAMESPACE=b;": {"a", "b", ""},
		"OTHER=a=b":                           {},
		"K8S_POD_NAME=;K8S_POD_NAMESPACE=":    {},
	} {
		if got, err := parseArgs(in); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"x", "K8S_POD_NAME=a", "K8S_POD_NAMESPACE=a;K8S_POD_UID=u"} {
		if got, err := parseArgs(in); err == nil {
			t.Errorf("%q: %+v and no error", in, got)
		}
	}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string][]string{
		`{}`: nil,
		`{"ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64", "interface": null}]}`: {"10.0.0.2/24", "fd00::2/64"},
		`{"ips": [{"address": "::ffff:10.0.0.2/120"}]}`:                                       {"10.0.0.2/24"},
		`{"interfaces": [{"name": "veth0"}, {"sandbox": "/x"}], "ips": [{"address": "1.1.1.1/32", "interface": 0}, {"address": "2.2.2.2/32", "interface": 1}, {"address": "3.3.3.3/32", "interface": 9}, {"address": "4.4.4.4/32", "interface": -1}]}`: {"2.2.2.2/32", "3.3.3.3/32", "4.4.4.4/32"},
	} {
		prev, err := parsePrev([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		got, err := prev.addresses()
		var texts []string
		for _, p := range got {
			texts = append(texts, p.String())
		}
		if err != nil || !slices.Equal(texts, want) {
			t.Errorf("%s: %v, %v; want %v", in, texts, err, want)
		}
	}
	var many prevResult
	for range maxIPs + 1 {
		many.IPs = append(many.IPs, struct {
			Address   string `json:"address"`
			Interface *int   `json:"interface"`
		}{Address: "10.0.0.1/32"})
	}
	if _, err := many.addresses(); err == nil {
		t.Error("too many addresses, and no error")
	}
}

func TestReadStdin(t *testing.T) {
	if got, err := readStdin(strings.NewReader("12345"), 5, time.Second); err != nil || string(got) != "12345" {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := readStdin(strings.NewReader("123456"), 5, time.Second); err == nil {
		t.Error("too much, and no error")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := readStdin(r, 5, time.Millisecond); err == nil || !strings.Contains(err.Error(), "in time") {
		t.Errorf("error %v", err)
	}
}

func FuzzStdin(f *testing.F) {
	f.Add([]byte(`{"cniVersion": "1.1.0", "name": "n", "type": "warren-cni", "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24", "interface": 0}], "interfaces": [{"sandbox": "/x"}]}}`), "K8S_POD_NAME=a;K8S_POD_NAMESPACE=b;K8S_POD_UID=c")
	f.Add([]byte(`{"cniVersion": "0.3.1", "prevResult": {"ips": [{"version": "4", "address": "10.1.2.3/24"}], "dns": {}, "big": 1e400}}`), "IgnoreUnknown=1")
	f.Add([]byte(`{"cniVersion": "1.1.0", "prevResult": {"cniVersion": "0.4.0", "ips": [{"version": "6", "address": "fd00::1/64"}]}}`), "")
	f.Add([]byte(`{"cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}], "runDir": "/r", "logLevel": "debug"}`), "=;=")
	f.Add([]byte(`{"prevResult": null, "withoutAgent": 7}`), ";;")
	for _, list := range []string{"ips", "interfaces", "routes"} {
		f.Add(fmt.Appendf(nil, `{"cniVersion": "0.4.0", "prevResult": {"cniVersion": "1.0.0", %q: [null]}}`, list), "")
	}
	f.Fuzz(func(t *testing.T, stdin []byte, args string) {
		conf, err := parseConfig(stdin)
		if !filepath.IsAbs(conf.RunDir) || !filepath.IsAbs(conf.StateDir) || conf.WithoutAgent != Refuse && conf.WithoutAgent != Allow || conf.Namespace == "" {
			t.Fatalf("not fit to go on with: %+v", conf)
		}
		if err != nil {
			return
		}
		if p, err := parseArgs(args); err == nil && (p.name == "") != (p.namespace == "") {
			t.Fatalf("half a pod: %+v", p)
		}
		prev, err := parsePrev(conf.PrevResult)
		if err != nil {
			return
		}
		ips, err := prev.addresses()
		if err == nil && len(ips) > maxIPs {
			t.Fatal("too many addresses")
		}
		out, err := render(conf.PrevResult, prev, conf.CNIVersion)
		if err != nil {
			return
		}
		if !json.Valid(out) {
			t.Fatalf("printed %q", out)
		}
		if prev.CNIVersion == conf.CNIVersion && !bytes.Equal(out, conf.PrevResult) {
			t.Fatalf("printed %q for %q", out, conf.PrevResult)
		}
	})
}
