package onehost

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/warren-mesh/warren/internal/capture"
	"github.com/warren-mesh/warren/internal/netns"
)

const (
	hbonePort    = 15008
	xdsPort      = 15012
	startTimeout = 20 * time.Second
	stopGrace    = 8 * time.Second
)

// Options say what mesh to build. Bins and Dir are required.
type Options struct {
	Prefix  string        // begins every namespace's name; unique among the meshes that run at one time
	Dir     string        // logs, sockets and state; made if absent, removed by Close unless KeepDir
	Bins    string        // folder of the four programs and of the CNI plugins bridge and host-local
	Proxy   string        // another proxy binary in our proxy's place; empty: ours
	Nodes   int           // 0: two
	TTL     time.Duration // of certificates; 0: the programs' default
	Env     []string      // added to each proxy's environment
	Args    []string      // added to the control plane's flags
	NoCNI   bool          // start no agents and no proxies (a test starts them itself)
	Cluster string        // the cluster's ID, empty: Kubernetes
	NoWire  bool          // leave the wire alone: no Capture, which costs CPU for every packet

	ControlPlane ControlPlane // in our control plane's place; nil: ours
}

// Mesh is a running mesh. Close ends it and removes all it made.
type Mesh struct {
	Opts    Options
	Nodes   []*Node
	KubeDir string
	Capture *capture.Capture // what crosses the link of the first node, control-plane traffic left out

	kube         kubeDir
	fabric       *fabric
	controlPlane *process
	super        supervisor
	closed       bool
}

// New builds the fabric, the control plane and the nodes, and starts their
// programs. On an error nothing is left behind.
func New(ctx context.Context, o Options) (_ *Mesh, err error) {
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	m := &Mesh{Opts: o, KubeDir: filepath.Join(o.Dir, "kube")}
	m.kube = kubeDir{path: m.KubeDir, also: o.ControlPlane}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if err := os.MkdirAll(m.KubeDir, 0o755); err != nil {
		return nil, err
	}
	if m.fabric, err = newFabric(o.Prefix); err != nil {
		return nil, err
	}
	for i := range o.Nodes {
		n, err := m.newNode(i + 1)
		if n != nil {
			m.Nodes = append(m.Nodes, n)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := m.connectPodNetworks(); err != nil {
		return nil, err
	}
	if !o.NoWire {
		if m.Capture, err = capture.Open(m.fabric.ns, m.Nodes[0].port(), hbonePort, controlPlaneAddrs()[0].Masked()); err != nil {
			return nil, err
		}
	}
	if err := m.writeTokens(); err != nil {
		return nil, err
	}
	if o.NoCNI {
		return m, nil
	}
	return m, m.startAll(ctx)
}

func (m *Mesh) startAll(ctx context.Context) error {
	if err := m.StartControlPlane(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, n := range m.Nodes {
		if err := n.StartAgent(ctx); err != nil {
			return err
		}
		if err := n.StartProxy(ctx); err != nil {
			return err
		}
	}
	for _, n := range m.Nodes {
		if err := n.WaitProxyReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// connectPodNetworks tells each node where the other nodes' pods are.
func (m *Mesh) connectPodNetworks() error {
	for _, n := range m.Nodes {
		for _, other := range m.Nodes {
			if n == other {
				continue
			}
			for i, subnet := range podSubnets(other.index) {
				if err := route(n.NS, subnet, nodeAddrs(other.index)[i].Addr()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// writeTokens gives each node a secret of its own, known to the control plane.
// No newline: ztunnel sends the file as it is.
func (m *Mesh) writeTokens() error {
	var all []byte
	for _, n := range m.Nodes {
		var secret [16]byte
		rand.Read(secret[:]) // never fails (crypto/rand)
		token := hex.EncodeToString(secret[:])
		all = fmt.Appendf(all, "%s %s\n", token, n.Name)
		if err := os.WriteFile(n.tokenFile(), []byte(token), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(m.tokensFile(), all, 0o600)
}

func (m *Mesh) tokensFile() string      { return filepath.Join(m.Opts.Dir, "node-tokens") }
func (m *Mesh) controlPlaneDir() string { return filepath.Join(m.Opts.Dir, "controlplane") }

// RootCert is the file in which the control plane publishes its CA's root.
func (m *Mesh) RootCert() string { return filepath.Join(m.controlPlaneDir(), "root-cert.pem") }

// ControlPlaneAddr is where the proxies look for the control plane: an address
// of FabricNS.
func (m *Mesh) ControlPlaneAddr() netip.AddrPort { return ControlPlaneAddr() }

// ControlPlaneAddr is the same in every mesh.
func ControlPlaneAddr() netip.AddrPort {
	return netip.AddrPortFrom(controlPlaneAddrs()[0].Addr(), xdsPort)
}

// StartControlPlane starts the control plane and waits until it serves.
func (m *Mesh) StartControlPlane(ctx context.Context) error {
	if m.Opts.ControlPlane != nil {
		return m.Opts.ControlPlane.Start(ctx, m)
	}
	args := []string{
		"--kube-dir", m.KubeDir, "--listen", ":" + strconv.Itoa(xdsPort), "--state-dir", m.controlPlaneDir(),
		"--node-tokens", m.tokensFile(), "--hosts", controlPlaneAddrs()[0].Addr().String(),
		"--health-listen", "127.0.0.1:8080", "--metrics-listen", "127.0.0.1:15014",
	}
	if m.Opts.TTL > 0 {
		args = append(args, "--ca-ttl", m.Opts.TTL.String())
	}
	args = append(args, m.Opts.Args...)
	p, err := start(m.fabric.ns, m.Opts.Dir, command{name: "controlplane", bin: filepath.Join(m.Opts.Bins, "controlplane"), args: args})
	if err != nil {
		return err
	}
	m.super.add(p)
	m.controlPlane = p
	return p.until(ctx, "it serves", func() error {
		conn, err := dialIn(ctx, m.fabric.ns, "127.0.0.1:"+strconv.Itoa(xdsPort))
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// StopControlPlane takes the control plane away as a crash would.
func (m *Mesh) StopControlPlane() error { return m.controlPlane.kill() }

// Close stops every program, removes pods, links and namespaces, and reports
// what could not be removed. It is idempotent.
func (m *Mesh) Close() error {
	if m.closed {
		return nil
	}
	m.closed = true
	var errs []error
	if m.Capture != nil {
		errs = append(errs, m.Capture.Close())
	}
	for _, n := range m.Nodes {
		errs = append(errs, n.deletePods())
	}
	errs = append(errs, m.super.stopAll(stopGrace))
	for _, n := range m.Nodes {
		errs = append(errs, n.close())
	}
	if m.fabric != nil {
		errs = append(errs, m.fabric.close())
	}
	return errors.Join(errs...)
}

func (m *Mesh) cluster() string { return cmp.Or(m.Opts.Cluster, "Kubernetes") }

// FabricNS is the namespace of the wire between the nodes; tests send hostile traffic from it.
func (m *Mesh) FabricNS() *netns.NS { return m.fabric.ns }
