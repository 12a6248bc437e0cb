package onehost

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/warren-mesh/warren/internal/netns"
)

// Node is a network namespace with an agent and a proxy.
type Node struct {
	Name string
	NS   *netns.NS
	Pods map[string]*Pod // by namespace/name

	// AddTimes says how long each plugin took for each successful ADD. Like
	// the rest of Node it belongs to one goroutine.
	AddTimes map[string][]time.Duration

	mesh  *Mesh
	index int // from 1
	agent *process
	proxy *process
	seq   int             // makes container ids unique
	bare  *netlink.Handle // in the node, once it has bare pods
}

func (m *Mesh) newNode(index int) (*Node, error) {
	n := &Node{Name: "node" + strconv.Itoa(index), mesh: m, index: index, Pods: make(map[string]*Pod), AddTimes: make(map[string][]time.Duration)}
	ns, err := createNS(nsName(m.Opts.Prefix, n.Name))
	if err != nil {
		return nil, err
	}
	n.NS = ns
	for _, d := range []string{n.dir(), n.RunDir(), n.StateDir(), n.cniDir()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return n, err
		}
	}
	for _, kv := range [][2]string{
		{"ipv4/ip_forward", "1"}, {"ipv6/conf/all/forwarding", "1"},
		{"ipv6/conf/default/accept_dad", "0"}, {"ipv6/conf/all/accept_dad", "0"},
	} {
		if err := sysctl(ns, kv[0], kv[1]); err != nil {
			return n, fmt.Errorf("%s: %s: %w", n.Name, kv[0], err)
		}
	}
	return n, m.fabric.plug(n.port(), ns, nodeAddrs(index)...)
}

// Paths of the node; on a real node these are /run/warren, /var/lib/warren, ….

func (n *Node) dir() string           { return filepath.Join(n.mesh.Opts.Dir, n.Name) }
func (n *Node) RunDir() string        { return filepath.Join(n.dir(), "run") }
func (n *Node) StateDir() string      { return filepath.Join(n.dir(), "state") }
func (n *Node) cniDir() string        { return filepath.Join(n.dir(), "cni") }
func (n *Node) tokenFile() string     { return filepath.Join(n.dir(), "token") }
func (n *Node) ZDSSocket() string     { return filepath.Join(n.RunDir(), "ztunnel.sock") }
func (n *Node) Conflist() string      { return filepath.Join(n.cniDir(), "10-warren.conflist") }
func (n *Node) port() string          { return "port" + strconv.Itoa(n.index) }
func (n *Node) Index() int            { return n.index } // from 1
func (n *Node) AgentLog() string      { return n.agent.log }
func (n *Node) ProxyLog() string      { return n.proxy.log }
func (n *Node) Addrs() []netip.Prefix { return nodeAddrs(n.index) }

// StartAgent starts the node agent and waits until the plugin can reach it.
func (n *Node) StartAgent(ctx context.Context) error {
	p, err := start(n.NS, n.mesh.Opts.Dir, command{name: n.Name + "-nodeagent", bin: filepath.Join(n.mesh.Opts.Bins, "nodeagent"), args: []string{
		"run", "--node-name", n.Name, "--kube-dir", n.mesh.KubeDir, "--run-dir", n.RunDir(), "--state-dir", n.StateDir(),
		"--zds-socket", n.ZDSSocket(), "--health-listen", "127.0.0.1:8000", "--metrics-listen", "127.0.0.1:15014",
	}})
	if err != nil {
		return err
	}
	n.agent = p
	n.mesh.super.add(p)
	return p.until(ctx, "its sockets are there", func() error {
		for _, s := range []string{"cni.sock", "status.sock"} {
			if _, err := os.Stat(filepath.Join(n.RunDir(), s)); err != nil {
				return err
			}
		}
		return n.get(ctx, "127.0.0.1:8000", "/readyz", nil)
	})
}

// StartProxy starts the proxy; WaitProxyReady waits for it.
func (n *Node) StartProxy(ctx context.Context) error {
	bin := n.mesh.Opts.Proxy
	if bin == "" {
		bin = filepath.Join(n.mesh.Opts.Bins, "proxy")
	}
	addr := "https://" + n.mesh.ControlPlaneAddr().String()
	env := []string{
		"NODE_NAME=" + n.Name, "INPOD_UDS=" + n.ZDSSocket(), "XDS_ADDRESS=" + addr, "CA_ADDRESS=" + addr,
		"XDS_ROOT_CA=" + n.mesh.RootCert(), "CA_ROOT_CA=" + n.mesh.RootCert(), "AUTH_TOKEN=" + n.tokenFile(),
		"POD_NAMESPACE=istio-system", "POD_NAME=proxy-" + n.Name, "ENABLE_ORIG_SRC=true", "RUST_LOG=info", "LOG_FORMAT=json",
		"TERMINATION_GRACE_PERIOD_SECONDS=3", "ISTIO_META_DNS_CAPTURE=false",
	}
	if n.mesh.Opts.TTL > 0 {
		env = append(env, "SECRET_TTL="+n.mesh.Opts.TTL.String())
	}
	p, err := start(n.NS, n.mesh.Opts.Dir, command{
		name: n.Name + "-proxy", bin: bin, args: []string{"proxy", "ztunnel"}, env: append(env, n.mesh.Opts.Env...),
	})
	if err != nil {
		return err
	}
	n.proxy = p
	n.mesh.super.add(p)
	return nil
}

// WaitProxyReady returns when the proxy answers its readiness probe.
func (n *Node) WaitProxyReady(ctx context.Context) error {
	return n.proxy.until(ctx, "it is ready", func() error { return n.get(ctx, "127.0.0.1:15021", "/healthz/ready", nil) })
}

// KillProxy and KillAgent end them as a crash would.
func (n *Node) KillProxy() error { return n.proxy.kill() }
func (n *Node) KillAgent() error { return n.agent.kill() }

// StopProxy ends the proxy as a rollout would: it drains.
func (n *Node) StopProxy() error { return n.proxy.stop(stopGrace) }

// QuitProxy ends the proxy with the stacks of all its goroutines in its log.
func (n *Node) QuitProxy() error {
	if err := n.proxy.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		return err
	}
	<-n.proxy.done
	return nil
}

// Admin fetches a page of the proxy's administration port.
func (n *Node) Admin(ctx context.Context, path string) ([]byte, error) {
	var b bytes.Buffer
	err := n.get(ctx, "127.0.0.1:15000", path, &b)
	return b.Bytes(), err
}

// ConfigDump fetches the proxy's dump into v.
func (n *Node) ConfigDump(ctx context.Context, v any) error {
	return n.get(ctx, "127.0.0.1:15000", "/config_dump", v)
}

// Metrics fetches the proxy's metrics.
func (n *Node) Metrics(ctx context.Context) (string, error) {
	var b bytes.Buffer
	err := n.get(ctx, "127.0.0.1:15020", "/metrics", &b)
	return b.String(), err
}

// Profile takes a CPU profile of the proxy, in pprof's format. seconds is at
// least 1.
func (n *Node) Profile(ctx context.Context, seconds int) ([]byte, error) {
	var b bytes.Buffer
	err := n.get(ctx, "127.0.0.1:15000", "/debug/pprof/profile?seconds="+strconv.Itoa(seconds), &b)
	return b.Bytes(), err
}

// get fetches a path from a server inside the node: into a bytes.Buffer as it
// is, into anything else as JSON, nowhere if v is nil.
func (n *Node) get(ctx context.Context, host, path string, v any) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, a string) (net.Conn, error) { return dialIn(ctx, n.NS, a) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s%s: %s: %s", host, path, resp.Status, bytes.TrimSpace(body))
	}
	switch v := v.(type) {
	case nil:
		return nil
	case *bytes.Buffer:
		_, err = v.Write(body)
	default:
		err = json.Unmarshal(body, v)
	}
	return err
}

// Status runs `nodeagent status` on the node and returns its output and exit code.
func (n *Node) Status(ctx context.Context, args ...string) (string, int, error) {
	args = append([]string{"status", "--run-dir", n.RunDir()}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(n.mesh.Opts.Bins, "nodeagent"), args...)
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	if err := n.NS.Do(cmd.Start); err != nil {
		return "", -1, err
	}
	err := cmd.Wait()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return out.String(), exit.ExitCode(), nil
	}
	return out.String(), 0, err
}

func (n *Node) close() error {
	if n.bare != nil {
		n.bare.Close()
	}
	return errors.Join(n.NS.Close(), deleteNS(nsName(n.mesh.Opts.Prefix, n.Name)))
}

// tail returns the last lines of a file, for error messages.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Translate sends what pods outside of the mesh send to a Service's address to an
// endpoint, which a cluster has kube-proxy for. It ends with the node.
func (n *Node) Translate(vip, to netip.AddrPort) error {
	_, err := output(n.NS, "iptables", "-w", "5", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-d", vip.Addr().String(),
		"--dport", strconv.Itoa(int(vip.Port())), "-j", "DNAT", "--to-destination", to.String())
	return err
}
