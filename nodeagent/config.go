package nodeagent

import (
	"time"

	"github.com/spf13/pflag"

	"github.com/warren-mesh/warren/nodeagent/zds"
)

// The backends that --redirect chooses from.
const (
	RedirectAuto     = "auto"
	RedirectIPTables = "iptables"
	RedirectNFTables = "nftables"
)

// The names of the sockets in the run directory, cni.sock aside, and of the
// proxy's beside the ZDS socket.
const (
	statusSocket = "status.sock"
	pluginSocket = "pluginevent.sock" // Istio's name
	adminSocket  = "admin.sock"
)

// Config is everything that can be set. Whoever makes one by hand starts from
// Defaults.
type Config struct {
	NodeName   string
	Kubernetes bool   // the objects come from an API server
	Kubeconfig string // of that one; empty: the cluster's that the agent is a pod of
	KubeDir    string // folder of Kubernetes YAML, instead

	RunDir    string // sockets
	StateDir  string // what must survive a restart
	ZDSSocket string // where the proxy connects; its admin.sock lies beside it
	HostRoot  string // where the host's files are seen

	Redirect   string // RedirectAuto, RedirectIPTables, RedirectNFTables
	IPv6       bool
	DNSCapture bool

	OwnNamespace      string
	ExcludeNamespaces []string
	Selectors         string // YAML; empty: the label istio.io/dataplane-mode

	DrainDeadline time.Duration // for the connections of a running pod that leaves the mesh

	SelfProbe bool // the audit connects to the proxy inside each pod

	InstallCNI bool      // put the plugin on the node and keep it there
	CNI        CNIConfig // how
	Probes     string    // whose probes reach pods of the mesh: ProbesAuto, ProbesOff, or probe's words

	DaemonSet    string        // that the agent is a pod of, in its own namespace; empty: none
	OnExit       string        // OnExitAuto, OnExitKeep, OnExitUninstall
	RemoveTaints []string      // keys of the node's taints that go once the agent is ready
	Linger       time.Duration // a leaving pod is served so long after its annotation went
	// TerminationGracePeriod is how long the agent has to end; a clean leave takes it.
	TerminationGracePeriod time.Duration

	HealthListen  string // empty: none
	MetricsListen string // empty: none
}

// What becomes of a node whose agent is told to end.
const (
	OnExitAuto      = "auto"      // what the DaemonSet says: a successor comes, or none
	OnExitKeep      = "keep"      // everything stays for a successor
	OnExitUninstall = "uninstall" // nothing of the mesh's stays
)

// Defaults is a Config that lacks only the node's name and where the objects come
// from.
func Defaults() Config {
	return Config{
		RunDir: "/run/warren", StateDir: "/var/lib/warren", ZDSSocket: zds.DefaultPath, HostRoot: "/",
		Redirect: RedirectAuto, IPv6: true, OwnNamespace: "warren-system", OnExit: OnExitAuto,
		Linger: 2 * time.Second, TerminationGracePeriod: 45 * time.Second, CNI: defaultCNI(), Probes: ProbesAuto, SelfProbe: true, HealthListen: ":8000", MetricsListen: ":15014",
	}
}

// RegisterFlags defines a flag for every field; what the config holds is the
// default.
func (c *Config) RegisterFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.NodeName, "node-name", c.NodeName, "name of this node (required)")
	fs.BoolVar(&c.Kubernetes, "kubernetes", c.Kubernetes, "follow the pods of an API server; either this or --kube-dir")
	fs.StringVar(&c.Kubeconfig, "kubeconfig", c.Kubeconfig, "how to reach the API server, with --kubernetes; empty: the one of the cluster that the agent is a pod of")
	fs.StringVar(&c.KubeDir, "kube-dir", c.KubeDir, "folder of Kubernetes YAML that stands in for an API server")
	fs.StringVar(&c.RunDir, "run-dir", c.RunDir, "folder for the agent's sockets")
	fs.StringVar(&c.StateDir, "state-dir", c.StateDir, "folder for what must survive a restart, on a disk that survives a reboot")
	fs.StringVar(&c.ZDSSocket, "zds-socket", c.ZDSSocket, "socket that the proxy connects to")
	fs.StringVar(&c.HostRoot, "host-root", c.HostRoot, "where the host's file system is seen")
	fs.StringVar(&c.Redirect, "redirect", c.Redirect, "what programs the pods' rules: auto, iptables or nftables")
	fs.BoolVar(&c.IPv6, "ipv6", c.IPv6, "redirect IPv6 as well")
	fs.BoolVar(&c.DNSCapture, "dns-capture", c.DNSCapture, "redirect DNS to the proxy, unless a pod's annotation says otherwise")
	fs.StringVar(&c.OwnNamespace, "own-namespace", c.OwnNamespace, "the mesh's own namespace, whose pods are admitted without asking")
	fs.StringSliceVar(&c.ExcludeNamespaces, "exclude-namespaces", c.ExcludeNamespaces, "namespaces whose pods are never in the mesh; the control plane needs the same")
	fs.StringVar(&c.Selectors, "enablement-selectors", c.Selectors, "which pods are in the mesh, as a YAML list of {podSelector, namespaceSelector}; empty for the label istio.io/dataplane-mode; the control plane needs the same")
	fs.DurationVar(&c.DrainDeadline, "drain-deadline", c.DrainDeadline, "how long the connections of a running pod that leaves the mesh may go on; 0: to their end")
	fs.DurationVar(&c.Linger, "linger", c.Linger, "how long a running pod that leaves the mesh is served at least, so that its peers hear of it")
	fs.BoolVar(&c.SelfProbe, "self-probe", c.SelfProbe, "connect to the proxy inside each pod of the mesh now and then, to see that it answers")
	fs.BoolVar(&c.InstallCNI, "install-cni", c.InstallCNI, "put the CNI plugin and its configuration on the node, keep them there, and take them away at uninstall")
	c.CNI.registerFlags(fs)
	fs.StringVar(&c.Probes, "probes", c.Probes, "whose probes reach pods of the mesh past its policies: kubelet, host (every process of the node's network), off, or auto (kubelet with --kubernetes)")
	fs.StringVar(&c.DaemonSet, "daemonset", c.DaemonSet, "DaemonSet in --own-namespace that the agent is a pod of; empty for none")
	fs.StringVar(&c.OnExit, "on-exit", c.OnExit, "what becomes of the mesh's things on this node when the agent is told to end: keep, uninstall, or auto (uninstall if --daemonset is going, too)")
	fs.DurationVar(&c.TerminationGracePeriod, "termination-grace-period", c.TerminationGracePeriod, "how long the agent has to end, as its pod's terminationGracePeriodSeconds says; a clean leave gives the pods what the rest leaves of it")
	fs.StringSliceVar(&c.RemoveTaints, "remove-taints", c.RemoveTaints, "keys of the node's taints to remove once the agent is ready, such as cni.istio.io/not-ready")
	fs.StringVar(&c.HealthListen, "health-listen", c.HealthListen, "address of /healthz and /readyz; empty for none")
	fs.StringVar(&c.MetricsListen, "metrics-listen", c.MetricsListen, "address of /metrics; empty for none")
}
