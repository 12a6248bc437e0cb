package install

import (
	"fmt"
	"strings"
)

// Platform is where a distribution of Kubernetes keeps what we install into.
// Flags and the chart's values take their defaults from here.
type Platform struct {
	Name       string
	CNIConfDir string
	CNIBinDir  string
	// Chained is false where the primary's file is another operator's to write.
	Chained    bool
	KeepBinary bool   // as in Config
	Note       string // what else is to be known, in words; may be empty
}

// DefaultPlatform is the name of the one that most distributions are like.
const DefaultPlatform = "default"

const (
	usualConfDir = "/etc/cni/net.d"
	usualBinDir  = "/opt/cni/bin"
	k3sConfDir   = "/var/lib/rancher/k3s/agent/etc/cni/net.d"
)

// Platforms returns all that are known, the default first.
func Platforms() []Platform {
	return []Platform{
		{Name: DefaultPlatform, CNIConfDir: usualConfDir, CNIBinDir: usualBinDir, Chained: true,
			Note: "kubeadm, kind, EKS, AKS, RKE2, k0s, Talos and others"},
		{Name: "gke", CNIConfDir: usualConfDir, CNIBinDir: "/home/kubernetes/bin", Chained: true,
			Note: "pods of priority system-node-critical outside kube-system need a ResourceQuota"},
		{Name: "k3s", CNIConfDir: k3sConfDir, CNIBinDir: "/var/lib/rancher/k3s/data/cni", Chained: true,
			Note: "releases before the end of 2024 take plugins from /var/lib/rancher/k3s/data/current/bin"},
		{Name: "k3d", CNIConfDir: k3sConfDir, CNIBinDir: "/bin", Chained: true},
		{Name: "microk8s", CNIConfDir: "/var/snap/microk8s/current/args/cni-network", CNIBinDir: "/var/snap/microk8s/current/opt/cni/bin", Chained: true},
		{Name: "minikube", CNIConfDir: usualConfDir, CNIBinDir: usualBinDir, Chained: true,
			Note: "with the docker runtime pods' namespaces are in /var/run/docker/netns"},
		// CRI-O reads multus' file alone, which the network operator writes, and
		// remembers the plugins of a pod's ADD.
		{Name: "openshift", CNIConfDir: "/etc/kubernetes/cni/net.d", CNIBinDir: "/var/lib/cni/bin", Chained: false, KeepBinary: true,
			Note: "needs a SecurityContextConstraints that allows the agent, and SELinux type spc_t"},
	}
}

// PlatformNamed returns one; the empty name is the default's.
func PlatformNamed(name string) (Platform, error) {
	var names []string
	for _, p := range Platforms() {
		if p.Name == name || name == "" {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Platform{}, fmt.Errorf("%q is no known platform: name one of %s, or the folders themselves", name, strings.Join(names, ", "))
}

// Apply sets what the platform says; fields of the config that are set stay.
func (p Platform) Apply(c *Config) {
	if c.CNIConfDir == "" {
		c.CNIConfDir = p.CNIConfDir
	}
	if c.CNIBinDir == "" {
		c.CNIBinDir = p.CNIBinDir
	}
	c.KeepBinary = c.KeepBinary || p.KeepBinary
}
