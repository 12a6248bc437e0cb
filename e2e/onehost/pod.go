package onehost

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/warren-mesh/warren/internal/netns"
)

// PodSpec is what a user would write.
type PodSpec struct {
	Namespace, Name, ServiceAccount string
	Labels, Annotations             map[string]string
	Unready                         bool
}

func (s PodSpec) key() string { return s.Namespace + "/" + s.Name }

// Pod is a running pod.
type Pod struct {
	Spec PodSpec
	UID  string
	NS   *netns.NS
	IPs  []netip.Addr // IPv4 first

	node        *Node
	containerID string
	bare        bool // made by AddBare
	unready     bool // SetReady
}

// NetnsName is the pod's name for `ip netns exec`.
func (p *Pod) NetnsName() string {
	return nsName(p.node.mesh.Opts.Prefix, p.node.Name+"-"+p.containerID)
}

func (p *Pod) netnsPath() string { return filepath.Join(netnsDir, p.NetnsName()) }

// IP4 and IP6 are the pod's addresses.
func (p *Pod) IP4() netip.Addr { return p.IPs[0] }
func (p *Pod) IP6() netip.Addr { return p.IPs[1] }

// Node is where the pod runs.
func (p *Pod) Node() *Node { return p.node }

// AddPod creates a pod as kubelet and a runtime do: the Pod object, a fresh
// namespace, CNI ADD, then the addresses in the Pod's status. A failed ADD is
// followed by DEL, as runtimes do, and leaves nothing.
func (n *Node) AddPod(ctx context.Context, spec PodSpec) (_ *Pod, err error) {
	n.seq++
	p := &Pod{Spec: spec, unready: spec.Unready, node: n, containerID: spec.Name + strconv.Itoa(n.seq), UID: fmt.Sprintf("00000000-0000-4000-8000-%06d%06d", n.index, n.seq)}
	if err := n.mesh.kube.putPod(p); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.destroy(ctx, p))
		}
	}()
	if p.NS, err = createNS(p.NetnsName()); err != nil {
		return nil, err
	}
	if err := prepare(p.NS); err != nil {
		return nil, err
	}
	list, err := n.conflist()
	if err != nil {
		return nil, err
	}
	res, err := n.cni().AddNetworkList(ctx, list, p.runtimeConf())
	if err != nil {
		return nil, fmt.Errorf("CNI ADD for %s on %s: %w", spec.key(), n.Name, err)
	}
	result, err := types100.NewResultFromResult(res)
	if err != nil {
		return nil, err
	}
	for _, ip := range result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			p.IPs = append(p.IPs, a.Unmap())
		}
	}
	n.Pods[spec.key()] = p
	return p, n.mesh.kube.putPod(p)
}

// prepare does what a runtime does before it runs the plugins: lo is up. And
// private links have no duplicate addresses: looking for them costs seconds.
func prepare(ns *netns.NS) error {
	nl, err := handleIn(ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	return errors.Join(setUp(nl, "lo"), sysctl(ns, "ipv6/conf/default/accept_dad", "0"))
}

// Delete ends the pod: CNI DEL, its namespace, its object.
func (p *Pod) Delete(ctx context.Context) error {
	delete(p.node.Pods, p.Spec.key())
	if p.bare {
		return p.removeBare()
	}
	return p.node.destroy(ctx, p)
}

func (n *Node) destroy(ctx context.Context, p *Pod) error {
	err := n.end(ctx, p)
	if rerr := n.mesh.kube.remove("Pod", p.Spec.Namespace, p.Spec.Name); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// end takes the pod off the node; its object stays.
func (n *Node) end(ctx context.Context, p *Pod) error {
	var errs []error
	if list, err := n.conflist(); err != nil {
		errs = append(errs, err)
	} else if err := n.cni().DelNetworkList(ctx, list, p.runtimeConf()); err != nil {
		errs = append(errs, fmt.Errorf("CNI DEL for %s: %w", p.Spec.key(), err))
	}
	if p.NS != nil {
		errs = append(errs, p.NS.Close(), deleteNS(p.NetnsName()))
	}
	return errors.Join(errs...)
}

func (n *Node) deletePods() error {
	var errs []error
	for _, p := range n.Pods {
		errs = append(errs, p.Delete(context.Background()))
	}
	return errors.Join(errs...)
}

func (p *Pod) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: p.containerID, NetNS: p.netnsPath(), IfName: "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Spec.Namespace}, {"K8S_POD_NAME", p.Spec.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.containerID}, {"K8S_POD_UID", p.UID},
		},
	}
}

// Check runs CNI CHECK for the pod.
func (p *Pod) Check(ctx context.Context) error {
	list, err := p.node.conflist()
	if err != nil {
		return err
	}
	return p.node.cni().CheckNetworkList(ctx, list, p.runtimeConf())
}

// CNIStatus runs CNI STATUS on the node.
func (n *Node) CNIStatus(ctx context.Context) error {
	list, err := n.conflist()
	if err != nil {
		return err
	}
	return n.cni().GetStatusNetworkList(ctx, list)
}

// conflist is written once, as an installer would, and then read from disk.
func (n *Node) conflist() (*libcni.NetworkConfigList, error) {
	if _, err := os.Stat(n.Conflist()); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(n.Conflist(), n.conflistText(), 0o644); err != nil {
			return nil, err
		}
	}
	return libcni.ConfListFromFile(n.Conflist())
}

func (n *Node) conflistText() []byte {
	subnets := podSubnets(n.index)
	return fmt.Appendf(nil, `{
  "cniVersion": "1.1.0",
  "name": "onehost",
  "plugins": [
    {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}], [{"subnet": %q}]]}},
    {"type": "warren-cni", "runDir": %q, "stateDir": %q, "logFile": %q}
  ]
}
`, filepath.Join(n.cniDir(), "ipam"), subnets[0], subnets[1], n.RunDir(), n.StateDir(), filepath.Join(n.dir(), "warren-cni.log"))
}

func (n *Node) cni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{n.mesh.Opts.Bins}, filepath.Join(n.cniDir(), "cache"), n.exec())
}

func (n *Node) exec() nodeExec {
	return nodeExec{DefaultExec: &invoke.DefaultExec{RawExec: &invoke.RawExec{}}, node: n}
}

func gcAttachment(containerID, ifname string) types.GCAttachment {
	return types.GCAttachment{ContainerID: containerID, IfName: ifname}
}

// nodeExec runs plugins in the node's namespace, where its runtime would be,
// and notes how long each ADD took.
type nodeExec struct {
	*invoke.DefaultExec
	node *Node
}

func (e nodeExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) (out []byte, err error) {
	began := time.Now()
	err = e.node.NS.Do(func() error {
		out, err = e.DefaultExec.ExecPlugin(ctx, path, stdin, env)
		return err
	})
	if err == nil && slices.Contains(env, "CNI_COMMAND=ADD") {
		name := filepath.Base(path)
		e.node.AddTimes[name] = append(e.node.AddTimes[name], time.Since(began))
	}
	return out, err
}

// Run starts a program inside the pod; it ends with the mesh.
func (p *Pod) Run(bin string, args ...string) (pid int, err error) {
	p.node.seq++
	proc, err := start(p.NS, p.node.mesh.Opts.Dir, command{
		name: fmt.Sprintf("%s-%s-%d", p.Spec.Namespace, p.Spec.Name, p.node.seq), bin: bin, args: args,
	})
	if err != nil {
		return 0, err
	}
	p.node.mesh.super.add(proc)
	return proc.cmd.Process.Pid, nil
}
