package onehost

import (
	"context"
	"net"
	"path/filepath"

	"github.com/warren-mesh/warren/internal/netns"
)

// ControlPlane takes the place of ours in a mesh: the proxies follow it, while the node
// agents go on reading the folder. Whatever is put into the folder it is told of.
type ControlPlane interface {
	// Start serves xDS and the CA at m.ControlPlaneAddr in m.FabricNS. When it returns
	// the root is in m.RootCert and each node's token in its TokenFile.
	Start(ctx context.Context, m *Mesh) error
	// Put is told of an object, in YAML, that is new or changed.
	Put(doc []byte) error
	// Gone is told of an object that was removed.
	Gone(kind, namespace, name string) error
}

// TokenFile is where the node's proxy reads its token.
func (n *Node) TokenFile() string { return n.tokenFile() }

// Run starts a program in the namespace of the control plane. It ends with the mesh, as
// by a crash: programs that depend on each other do not wait for one another.
func (m *Mesh) Run(name, bin string, env []string, args ...string) error {
	return m.runIn(m.fabric.ns, command{name: name, bin: bin, args: args, env: env})
}

// Run starts a program in the node's own namespace. It ends as those of Mesh.Run.
func (n *Node) Run(name, bin string, env []string, args ...string) error {
	return n.mesh.runIn(n.NS, command{name: n.Name + "-" + name, bin: bin, args: args, env: env})
}

func (m *Mesh) runIn(ns *netns.NS, c command) error {
	p, err := start(ns, m.Opts.Dir, c)
	if err != nil {
		return err
	}
	p.hard = true
	m.super.add(p)
	return nil
}

// Log is the output of a program that Run started.
func (m *Mesh) Log(name string) string { return filepath.Join(m.Opts.Dir, name+".log") }

// DialFabric connects from the namespace of the control plane.
func (m *Mesh) DialFabric(ctx context.Context, addr string) (net.Conn, error) {
	return dialIn(ctx, m.fabric.ns, addr)
}

// Tell gives an object to the control plane alone: something that no node agent reads.
func (m *Mesh) Tell(doc []byte) error {
	if m.kube.also == nil {
		return nil
	}
	return m.kube.also.Put(doc)
}

// Put writes or replaces any object, given as one document of YAML.
func (m *Mesh) Put(kind, namespace, name string, doc []byte) error {
	return m.kube.write(m.kube.file(kind, namespace, name), doc)
}

// SetReady says in the Pod's status whether it is ready, as a kubelet does.
func (p *Pod) SetReady(ready bool) error {
	p.unready = !ready
	return p.node.mesh.kube.putPod(p)
}
