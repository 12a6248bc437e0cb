package nodeagent

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/xds/translate"
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
	NodeName  string
	KubeDir   string // folder of Kubernetes YAML
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

	HealthListen  string // empty: none
	MetricsListen string // empty: none
}

// Defaults is a Config that lacks only the node's name and the folder.
func Defaults() Config {
	return Config{
		RunDir: "/run/warren", StateDir: "/var/lib/warren", ZDSSocket: zds.DefaultPath, HostRoot: "/",
		Redirect: RedirectAuto, IPv6: true, OwnNamespace: "warren-system", DrainDeadline: 15 * time.Second,
		HealthListen: ":8000", MetricsListen: ":15014",
	}
}

// RegisterFlags defines a flag for every field; what the config holds is the
// default.
func (c *Config) RegisterFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.NodeName, "node-name", c.NodeName, "name of this node (required)")
	fs.StringVar(&c.KubeDir, "kube-dir", c.KubeDir, "folder of Kubernetes YAML that stands in for an API server (required)")
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
	fs.DurationVar(&c.DrainDeadline, "drain-deadline", c.DrainDeadline, "how long the connections of a running pod that leaves the mesh may go on")
	fs.StringVar(&c.HealthListen, "health-listen", c.HealthListen, "address of /healthz and /readyz; empty for none")
	fs.StringVar(&c.MetricsListen, "metrics-listen", c.MetricsListen, "address of /metrics; empty for none")
}

// Validate returns all mistakes at once.
func (c *Config) Validate() error {
	var errs []error
	bad := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	if c.NodeName == "" {
		bad("node-name", "must name this node")
	}
	if c.KubeDir == "" {
		bad("kube-dir", "must name a folder of Kubernetes YAML: following the pods of an API server is not there yet")
	}
	for _, p := range []struct{ flag, value string }{
		{"run-dir", c.RunDir}, {"state-dir", c.StateDir}, {"zds-socket", c.ZDSSocket}, {"host-root", c.HostRoot},
	} {
		if !filepath.IsAbs(p.value) {
			bad(p.flag, "%q must be an absolute path", p.value)
		}
	}
	// sun_path holds 108 bytes with its end; the longest name counts.
	for _, p := range []struct{ flag, value string }{
		{"run-dir", filepath.Join(c.RunDir, pluginSocket)}, {"zds-socket", c.ZDSSocket}, {"zds-socket", filepath.Join(filepath.Dir(c.ZDSSocket), adminSocket)},
	} {
		if len(p.value) > 107 {
			bad(p.flag, "the socket's path %s is longer than the 107 bytes that are possible", p.value)
		}
	}
	switch c.Redirect {
	case RedirectAuto, RedirectIPTables:
	case RedirectNFTables:
		bad("redirect", "the nftables backend is not there yet: use auto or iptables")
	default:
		bad("redirect", "%q is none of auto, iptables and nftables", c.Redirect)
	}
	for _, ns := range c.ExcludeNamespaces {
		if why := validation.IsDNS1123Label(ns); len(why) > 0 {
			bad("exclude-namespaces", "%q: %s", ns, strings.Join(why, "; "))
		}
	}
	if why := validation.IsDNS1123Label(c.OwnNamespace); c.OwnNamespace != "" && len(why) > 0 {
		bad("own-namespace", "%q: %s", c.OwnNamespace, strings.Join(why, "; "))
	}
	if _, err := translate.ParseSelectors(c.Selectors); err != nil {
		bad("enablement-selectors", "%v", err)
	}
	if c.DrainDeadline <= 0 {
		bad("drain-deadline", "%s must be more than zero", c.DrainDeadline)
	}
	if c.HealthListen != "" && c.HealthListen == c.MetricsListen && !strings.HasSuffix(c.HealthListen, ":0") {
		bad("metrics-listen", "%q is the address of --health-listen", c.MetricsListen)
	}
	for _, l := range []struct{ flag, value string }{{"health-listen", c.HealthListen}, {"metrics-listen", c.MetricsListen}} {
		if l.value != "" && !hostPort(l.value) {
			bad(l.flag, "%q is not an address, such as 127.0.0.1:8000 or :8000", l.value)
		}
	}
	return errors.Join(errs...)
}

func hostPort(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}
