package onehost

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
)

// AddAgain runs ADD of our plugin once more for a pod that has it already,
// with the result of the first ADD (bridge itself refuses a second ADD).
func (p *Pod) AddAgain(ctx context.Context) error {
	list, err := p.node.conflist()
	if err != nil {
		return err
	}
	cached, err := p.node.cni().GetNetworkListCachedResult(list, p.runtimeConf())
	if err != nil {
		return err
	}
	ours := list.Plugins[len(list.Plugins)-1]
	var conf map[string]any
	if err := json.Unmarshal(ours.Bytes, &conf); err != nil {
		return err
	}
	conf["cniVersion"], conf["name"], conf["prevResult"] = list.CNIVersion, list.Name, cached
	stdin, err := json.Marshal(conf)
	if err != nil {
		return err
	}
	rt := p.runtimeConf()
	args := &invoke.Args{
		Command: "ADD", ContainerID: rt.ContainerID, NetNS: rt.NetNS, PluginArgs: rt.Args, IfName: rt.IfName,
		Path: p.node.mesh.Opts.Bins,
	}
	_, err = p.node.exec().ExecPlugin(ctx, filepath.Join(p.node.mesh.Opts.Bins, "warren-cni"), stdin, args.AsEnv())
	return err
}

// DeleteUnknown runs DEL for a sandbox that never was.
func (n *Node) DeleteUnknown(ctx context.Context) error {
	list, err := n.conflist()
	if err != nil {
		return err
	}
	err = n.cni().DelNetworkList(ctx, list, &libcni.RuntimeConf{ContainerID: "never-added", IfName: "eth0"})
	if err != nil {
		return fmt.Errorf("CNI DEL without ADD: %w", err)
	}
	return nil
}

// GC runs CNI GC with the node's pods as the valid attachments.
func (n *Node) GC(ctx context.Context) error {
	list, err := n.conflist()
	if err != nil {
		return err
	}
	var valid libcni.GCArgs
	for _, p := range n.Pods {
		rt := p.runtimeConf()
		valid.ValidAttachments = append(valid.ValidAttachments, gcAttachment(rt.ContainerID, rt.IfName))
	}
	return n.cni().GCNetworkList(ctx, list, &valid)
}
