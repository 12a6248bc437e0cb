package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Where the plugin and the configuration of CNI lie on a node, and our name there.
const (
	CNIConfDir = "/etc/cni/net.d"
	CNIBinDir  = "/opt/cni/bin"
	PluginName = "warren-cni"
)

// Node is a pod that sees the file system of its node. It is on the host's network,
// so it needs no CNI.
type Node struct {
	c    *Cluster
	name string
	pod  *corev1.Pod
}

// Host starts such a pod; it is gone with its namespace.
func (c *Cluster) Host(ctx context.Context, namespace, node string) (*Node, error) {
	pod, err := c.Create(ctx, PodSpec{Namespace: namespace, Name: "node-" + node, Account: "node", Node: node, Mutate: func(p *corev1.Pod) {
		p.Spec.HostNetwork = true
		p.Spec.Containers[0].Command = []string{AppPath, "sleep", "36000"}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "conf", MountPath: "/host" + CNIConfDir}, {Name: "bin", MountPath: "/host" + CNIBinDir}}
		p.Spec.Volumes = []corev1.Volume{
			{Name: "conf", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: CNIConfDir}}},
			{Name: "bin", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: CNIBinDir}}},
		}
	}})
	if err != nil {
		return nil, err
	}
	if pod, err = c.WaitReady(ctx, namespace, pod.Name, 2*time.Minute); err != nil {
		return nil, err
	}
	return &Node{c: c, name: node, pod: pod}, nil
}

func (n *Node) file(ctx context.Context, args ...string) (string, error) {
	return n.c.Exec(ctx, n.pod.Namespace, n.pod.Name, "app", append([]string{AppPath, "file"}, args...)...)
}

// List names the files of a folder.
func (n *Node) List(ctx context.Context, dir string) ([]string, error) {
	text, err := n.file(ctx, "ls", "/host"+dir)
	return strings.Fields(text), err
}

// Read returns a file.
func (n *Node) Read(ctx context.Context, file string) (string, error) {
	return n.file(ctx, "cat", "/host"+file)
}

// Write puts a file in place, whole.
func (n *Node) Write(ctx context.Context, file, text string) error {
	_, err := n.file(ctx, "write", "/host"+file, text)
	return err
}

// Rename moves a file.
func (n *Node) Rename(ctx context.Context, from, to string) error {
	_, err := n.file(ctx, "mv", "/host"+from, "/host"+to)
	return err
}

// Remove deletes a file.
func (n *Node) Remove(ctx context.Context, file string) error {
	_, err := n.file(ctx, "rm", "/host"+file)
	return err
}

// Conflist is the configuration that a container runtime takes: the first by name.
func (n *Node) Conflist(ctx context.Context) (file, text string, err error) {
	return n.conflist(ctx, func(string) bool { return true })
}

// Primary is the configuration of the node's own CNI: the first that is no copy of ours,
// as there is where we are not chained into its file.
func (n *Node) Primary(ctx context.Context) (file, text string, err error) {
	return n.conflist(ctx, func(text string) bool { return !strings.Contains(text, `"warrenCopyOf"`) })
}

func (n *Node) conflist(ctx context.Context, is func(text string) bool) (file, text string, err error) {
	names, err := n.List(ctx, CNIConfDir)
	if err != nil {
		return "", "", err
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasPrefix(name, ".") || !slices.Contains([]string{".conflist", ".conf", ".json"}, path.Ext(name)) {
			continue
		}
		file = path.Join(CNIConfDir, name)
		if text, err = n.Read(ctx, file); err != nil || is(text) {
			return file, text, err
		}
	}
	return "", "", fmt.Errorf("%s has no such configuration in %s: %v", n.name, CNIConfDir, names)
}

// Plugins are the types of the plugins in a conflist, in order.
func Plugins(conflist string) ([]string, error) {
	var list struct {
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal([]byte(conflist), &list); err != nil {
		return nil, err
	}
	var types []string
	for _, p := range list.Plugins {
		types = append(types, p.Type)
	}
	return types, nil
}

// Chained reports whether ours is in the configuration that the runtime takes, once.
func (n *Node) Chained(ctx context.Context) (bool, error) {
	file, text, err := n.Conflist(ctx)
	if err != nil {
		return false, err
	}
	types, err := Plugins(text)
	if err != nil {
		return false, fmt.Errorf("%s: %w", file, err)
	}
	count := 0
	for _, t := range types {
		if t == PluginName {
			count++
		}
	}
	if count > 1 {
		return false, fmt.Errorf("%s has %s %d times: %v", file, PluginName, count, types)
	}
	return count == 1, nil
}

// Clean says what of ours is left in the node's CNI folders, nil if nothing is.
func (n *Node) Clean(ctx context.Context) error {
	for _, dir := range []string{CNIConfDir, CNIBinDir} {
		names, err := n.List(ctx, dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			if strings.Contains(name, "warren") {
				return fmt.Errorf("%s: %s/%s is left", n.name, dir, name)
			}
			if dir != CNIConfDir {
				continue
			}
			if text, err := n.Read(ctx, path.Join(dir, name)); err == nil && strings.Contains(text, PluginName) {
				return fmt.Errorf("%s: %s/%s still names %s", n.name, dir, name, PluginName)
			}
		}
	}
	return nil
}

// EventWith returns nil if an event about a pod holds the words.
func (c *Cluster) EventWith(ctx context.Context, namespace, pod, reason, words string) error {
	var told []string
	for _, e := range c.Events(ctx, namespace, pod) {
		if e.Reason == reason && strings.Contains(e.Message, words) {
			return nil
		}
		told = append(told, e.Reason+": "+e.Message)
	}
	return fmt.Errorf("pod %s/%s has no event %s with %q, only %q", namespace, pod, reason, words, told)
}

// WithoutAgent takes the agents away as a broken upgrade does: the DaemonSet stays,
// and its pods have an image that is not there. The returned function mends it.
func (m *Mesh) WithoutAgent(ctx context.Context) (mend func(context.Context) error, err error) {
	ds, err := m.AppsV1().DaemonSets(SystemNamespace).Get(ctx, AgentDaemonSet, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	image := ds.Spec.Template.Spec.Containers[0].Image
	mend = func(ctx context.Context) error {
		if err := m.setAgentImage(ctx, image); err != nil {
			return err
		}
		// A DaemonSet waits for ever for a pod of its that cannot start.
		if err := m.deleteAgents(ctx); err != nil {
			return err
		}
		return m.WaitUp(ctx, 3*time.Minute)
	}
	if err := m.setAgentImage(ctx, image+"-not-there"); err != nil {
		return mend, err
	}
	if err := m.deleteAgents(ctx); err != nil {
		return mend, err
	}
	return mend, Until(ctx, 2*time.Minute, "no agent runs", func(ctx context.Context) error {
		pods, err := m.CoreV1().Pods(SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(ds.Spec.Selector)})
		if err != nil {
			return err
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			if s := p.Status.ContainerStatuses; p.DeletionTimestamp != nil || len(s) == 0 || s[0].State.Waiting == nil {
				return fmt.Errorf("%s: %s", p.Name, m.why(ctx, p))
			}
		}
		return nil
	})
}

func (m *Mesh) setAgentImage(ctx context.Context, image string) error {
	patch := fmt.Appendf(nil, `[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":%q}]`, image)
	_, err := m.AppsV1().DaemonSets(SystemNamespace).Patch(ctx, AgentDaemonSet, types.JSONPatchType, patch, metav1.PatchOptions{})
	return err
}

func (m *Mesh) deleteAgents(ctx context.Context) error {
	return m.CoreV1().Pods(SystemNamespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "app=" + AgentDaemonSet})
}

// NodesWith lets a DaemonSet run on the nodes with a label alone; none: on all.
func (m *Mesh) NodesWith(ctx context.Context, daemonSet string, label map[string]string) error {
	selector := map[string]string{"kubernetes.io/os": "linux"}
	maps.Copy(selector, label)
	value, err := json.Marshal(selector)
	if err != nil {
		return err
	}
	patch := fmt.Appendf(nil, `[{"op":"add","path":"/spec/template/spec/nodeSelector","value":%s}]`, value)
	_, err = m.AppsV1().DaemonSets(SystemNamespace).Patch(ctx, daemonSet, types.JSONPatchType, patch, metav1.PatchOptions{})
	return err
}
