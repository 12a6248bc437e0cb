//go:build spire

package spire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/delegated"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/internal/netns"
)

const patience = 90 * time.Second // SPIRE's agent asks its server every five seconds

var td = spiffeid.RequireTrustDomainFromString("example.org")

func id(path string) spiffeid.ID { return spiffeid.RequireFromPath(td, path) }

// world is a server and an agent that has attested to it. The delegate is this test's own process.
type world struct {
	t      *testing.T
	dir    string
	server string // path of the server's program
	agent  string
	agents *exec.Cmd
}

func binary(t *testing.T, name string) string {
	t.Helper()
	path := os.Getenv(name)
	if path == "" {
		t.Fatalf("%s is not set: the path of SPIRE's program", name)
	}
	return path
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), server: binary(t, "SPIRE_SERVER_BIN"), agent: binary(t, "SPIRE_AGENT_BIN")}
	for _, d := range []string{"server", "agent", "public", "admin", "broker"} {
		if err := os.Mkdir(filepath.Join(w.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.write("server.conf", serverConf)
	w.write("agent.conf", agentConf)
	w.start(w.server, "run", "-config", w.path("server.conf"))
	w.until("the server is up", func() bool { _, err := w.try("bundle", "show"); return err == nil })
	bundle := w.run("bundle", "show")
	if err := os.WriteFile(w.path("bootstrap.crt"), []byte(bundle), 0o600); err != nil {
		t.Fatal(err)
	}
	out := w.run("token", "generate", "-spiffeID", "spiffe://example.org/node1")
	token := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(out), "Token:"))
	w.startAgent("-joinToken", token)
	w.entry("/warren/proxy", 0, "-selector", "unix:uid:"+strconv.Itoa(os.Getuid()))
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, text string) {
	w.t.Helper()
	var out bytes.Buffer
	tmpl := template.Must(template.New(name).Parse(text))
	if err := tmpl.Execute(&out, map[string]any{"Dir": w.dir, "Port": 20000 + os.Getpid()%20000}); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.path(name), out.Bytes(), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// start runs a program of SPIRE's until the test ends.
func (w *world) start(program string, args ...string) *exec.Cmd {
	w.t.Helper()
	cmd := exec.Command(program, args...)
	log, err := os.OpenFile(w.path(filepath.Base(program)+".out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && w.t.Failed() {
			w.t.Logf("%s:\n%s", filepath.Base(program), text[max(0, len(text)-4000):])
		}
	})
	return cmd
}

func (w *world) startAgent(args ...string) {
	w.t.Helper()
	w.agents = w.start(w.agent, append([]string{"run", "-config", w.path("agent.conf")}, args...)...)
	w.until("the agent is up", func() bool {
		_, err := os.Stat(w.path("admin/admin.sock"))
		return err == nil
	})
}

// stopAgent ends the agent; startAgent without a token brings it back.
func (w *world) stopAgent() {
	_ = w.agents.Process.Signal(syscall.SIGTERM)
	_, _ = w.agents.Process.Wait()
	_ = os.Remove(w.path("admin/admin.sock"))
}

func (w *world) try(args ...string) (string, error) {
	at := 1
	if args[0] == "localauthority" {
		at = 3
	} else if len(args) > 1 && !strings.HasPrefix(args[1], "-") {
		at = 2
	}
	full := append(append(append([]string{}, args[:at]...), "-socketPath", w.path("server/api.sock")), args[at:]...)
	out, err := exec.Command(w.server, full...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(full, " "), err, out)
	}
	return string(out), nil
}

func (w *world) run(args ...string) string {
	w.t.Helper()
	out, err := w.try(args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// entry registers who matches selectors, and returns the entry's ID.
func (w *world) entry(path string, ttl int, more ...string) string {
	w.t.Helper()
	args := []string{"entry", "create", "-parentID", "spiffe://example.org/node1", "-spiffeID", id(path).String()}
	if ttl > 0 {
		args = append(args, "-x509SVIDTTL", strconv.Itoa(ttl))
	}
	for line := range strings.Lines(w.run(append(args, more...)...)) {
		if v, ok := strings.CutPrefix(line, "Entry ID"); ok {
			return strings.TrimSpace(strings.TrimLeft(v, " :"))
		}
	}
	w.t.Fatal("no entry ID in the server's answer")
	return ""
}

func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("waiting until %s", what)
		}
	}
}

// manager gets certificates through the delegated API.
func (w *world) manager(mode delegated.Mode) *svid.Manager {
	w.t.Helper()
	return w.reusing(mode, svid.Strict)
}

// reusing is manager at a reuse level, without a sample.
func (w *world) reusing(mode delegated.Mode, level svid.Reuse) *svid.Manager {
	w.t.Helper()
	s, err := delegated.New(delegated.Config{Address: "unix://" + w.path("admin/admin.sock"), Mode: mode, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	m := svid.New(svid.Config{Watcher: s, Prover: s, Reuse: level, Sample: -1, CallTimeout: patience, Wait: time.Second})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			w.t.Error(err)
		}
	})
	return m
}

// get waits for an identity, as long as SPIRE needs to hear of an entry.
func (w *world) get(l *svid.Lease) (i *mtls.Identity) {
	w.t.Helper()
	var err error
	w.until("there is a certificate for "+l.ID().String(), func() bool {
		i, err = l.Identity(context.Background())
		return err == nil
	})
	return i
}

func (w *world) gone(l *svid.Lease) {
	w.t.Helper()
	w.until("the certificate is withdrawn", func() bool {
		_, err := l.Identity(context.Background())
		return errors.Is(err, svid.ErrNotEntitled)
	})
}

// pod is one or more processes in the control groups of a pod.
type pod struct {
	svid.Pod
	w      *world
	groups []string
}

// uids of the processes that entries are about.
const (
	uidBar   = 2001
	uidOther = 2002
)

func (w *world) pod(uid string) *pod {
	w.t.Helper()
	ns, err := netns.Open("/proc/self/ns/net")
	if err != nil {
		w.t.Fatal(err)
	}
	defer ns.Close()
	p := &pod{w: w, Pod: svid.Pod{UID: uid, Namespace: "foo", Name: "p", ServiceAccount: "bar", Netns: ns.ID()}}
	below := filepath.Join("kubepods", "pod"+uid, strings.Repeat("a1", 32))
	for _, root := range hierarchies(w.t) {
		at := filepath.Join(root, below)
		if err := os.MkdirAll(at, 0o755); err != nil {
			w.t.Fatal(err)
		}
		p.groups = append(p.groups, at)
		w.t.Cleanup(func() { w.removeGroups(at) })
	}
	return p
}

// hierarchies are where control groups can be made: one is enough to be seen in.
func hierarchies(t *testing.T) []string {
	t.Helper()
	for _, at := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(at, "cgroup.procs")); err == nil {
			return []string{at}
		}
	}
	t.Fatal("no control groups are mounted in /sys/fs/cgroup")
	return nil
}

func (w *world) removeGroups(at string) {
	for range 3 { // the container's, the pod's, all pods'
		_ = syscall.Rmdir(at)
		at = filepath.Dir(at)
	}
}

// process starts one in the pod that runs as uid. end kills it, without waiting for it if zombie.
func (p *pod) process(uid int) (cmd *exec.Cmd) {
	p.w.t.Helper()
	// It moves itself before it becomes what SPIRE sees, so that nobody meets it on the way.
	script := ""
	for _, g := range p.groups {
		script += "echo $$ >" + g + "/cgroup.procs; "
	}
	cmd = exec.Command("/bin/sh", "-c", script+fmt.Sprintf("exec setpriv --reuid %d --regid %d --clear-groups sleep 3600", uid, uid))
	if err := cmd.Start(); err != nil {
		p.w.t.Fatal(err)
	}
	p.w.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p.w.until("the process runs", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		return err == nil && strings.TrimSpace(string(text)) == "sleep"
	})
	return cmd
}

const serverConf = `
server {
    bind_address = "127.0.0.1"
    bind_port = "{{.Port}}"
    socket_path = "{{.Dir}}/server/api.sock"
    trust_domain = "example.org"
    data_dir = "{{.Dir}}/server"
    log_level = "INFO"
    ca_ttl = "1h"
    default_x509_svid_ttl = "10m"
    ca_key_type = "ec-p256"
}
plugins {
    DataStore "sql" {
        plugin_data {
            database_type = "sqlite3"
            connection_string = "{{.Dir}}/server/datastore.sqlite3"
        }
    }
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "disk" { plugin_data { keys_path = "{{.Dir}}/server/keys.json" } }
}
`

const agentConf = `
agent {
    data_dir = "{{.Dir}}/agent"
    log_level = "INFO"
    server_address = "127.0.0.1"
    server_port = "{{.Port}}"
    socket_path = "{{.Dir}}/public/api.sock"
    trust_bundle_path = "{{.Dir}}/bootstrap.crt"
    trust_domain = "example.org"
    admin_socket_path = "{{.Dir}}/admin/admin.sock"
    authorized_delegates = ["spiffe://example.org/warren/proxy"]
    experimental {
        broker {
            socket_path = "{{.Dir}}/broker/broker.sock"
            brokers = [{
                id = "spiffe://example.org/warren/proxy"
                allowed_reference_types = [
                    { type_url = "type.googleapis.com/spiffe.broker.WorkloadPIDReference" },
                    { type_url = "type.googleapis.com/spiffe.broker.KubernetesObjectReference" },
                ]
            }]
        }
    }
}
plugins {
    NodeAttestor "join_token" { plugin_data {} }
    KeyManager "disk" { plugin_data { directory = "{{.Dir}}/agent" } }
    WorkloadAttestor "unix" { plugin_data { discover_workload_path = false } }
}
`
