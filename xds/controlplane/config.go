package controlplane

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/kubeauth"
	caserver "github.com/warren-mesh/warren/ca/server"
	"github.com/warren-mesh/warren/xds/translate"
)

// The ports are those of istiod.
const (
	defaultListen  = ":15012" // TLS: xDS and CA
	defaultHealth  = ":8080"
	defaultMetrics = ":15014"
)

// maxHosts bounds the names in the serving certificate.
const maxHosts = 64

// Config is everything that can be set. RegisterFlags gives it its defaults; whoever
// makes one by hand starts from Defaults.
type Config struct {
	// Either a folder of Kubernetes YAML, with a folder for the CA and a file of tokens …
	KubeDir    string
	StateDir   string // the CA's key and certificates
	CADir      string // a CA that somebody plugs in, in the layout of Istio's cacerts; empty: our own
	NodeTokens string // file of lines "<token> <node>"

	// … or a Kubernetes API server, which has all of it.
	Kubernetes          bool
	Kubeconfig          string   // empty: the API server of the cluster that we run in
	Namespace           string   // our own; empty: that of our service account
	TrustedNodeAccounts []string // service accounts of nodes' proxies, as namespace/name
	TokenAudience       string   // of the tokens that proxies prove themselves by
	RootConfigMap       string   // that every namespace gets; empty: none
	PolicyStatus        bool     // write into policies what became of them
	WaypointStatus      bool     // write into what is bound to a waypoint what became of that
	AllocateAddresses   bool     // give addresses to hosts of ServiceEntries that have none

	TrustDomain   string
	ClusterID     string
	Domain        string // DNS suffix of services
	RootNamespace string // of policies for the whole mesh
	Network       string
	DryRun        bool // send policies that are only to be logged

	// Selectors, as YAML, and ExcludeNamespaces say which pods are in the mesh; the
	// node agents must be given the same.
	Selectors         string
	ExcludeNamespaces []string

	Listen          string
	PlaintextListen string   // xDS without TLS or authentication; empty: none
	Hosts           []string // further names and addresses in the serving certificate
	HealthListen    string   // empty: none
	MetricsListen   string   // empty: none
	// ConnectionsPerAddress is how many one address may have to each port; zero: any number.
	ConnectionsPerAddress int

	TTL    time.Duration // of certificates that ask for none
	MaxTTL time.Duration
	// How often a proxy, or a pod for itself, may ask for a certificate.
	CARate  float64 // a second
	CABurst int     // at once

	// How long a CA that was replaced goes on signing, and then goes on being trusted.
	CAOverlap time.Duration
}

// Defaults is a Config that lacks only where the objects are: the folder, the state and
// the tokens, or Kubernetes.
func Defaults() Config {
	return Config{
		TrustedNodeAccounts: kubeauth.DefaultTrusted(),
		TokenAudience:       kubeauth.DefaultAudience,
		RootConfigMap:       "istio-ca-root-cert",
		PolicyStatus:        true,
		WaypointStatus:      true,
		AllocateAddresses:   true,

		TrustDomain:   "cluster.local",
		ClusterID:     "Kubernetes",
		Domain:        "cluster.local",
		RootNamespace: "istio-system",
		Listen:        defaultListen,
		HealthListen:  defaultHealth,
		MetricsListen: defaultMetrics,

		ConnectionsPerAddress: defaultPerAddress,

		TTL:       24 * time.Hour,
		MaxTTL:    90 * 24 * time.Hour,
		CARate:    caserver.DefaultRate,
		CABurst:   caserver.DefaultBurst,
		CAOverlap: 24 * time.Hour,
	}
}

// RegisterFlags defines a flag for every field; what the config holds is the default.
func (c *Config) RegisterFlags(fs *pflag.FlagSet) {
	c.registerWorldFlags(fs)
	fs.StringVar(&c.TrustDomain, "trust-domain", c.TrustDomain, "trust domain of all identities")
	fs.StringVar(&c.ClusterID, "cluster-id", c.ClusterID, "first part of every workload's UID")
	fs.StringVar(&c.Domain, "domain", c.Domain, "DNS suffix of services")
	fs.StringVar(&c.RootNamespace, "root-namespace", c.RootNamespace, "namespace of policies for the whole mesh")
	fs.StringVar(&c.Network, "network", c.Network, "network of all addresses, unless the root namespace is labelled topology.istio.io/network")
	fs.BoolVar(&c.DryRun, "dry-run-policies", c.DryRun, "send policies annotated istio.io/dry-run, which proxies then log and do not enforce")
	fs.StringVar(&c.Selectors, "enablement-selectors", c.Selectors, "which pods are in the mesh, as a YAML list of {podSelector, namespaceSelector}; empty for the label istio.io/dataplane-mode; node agents need the same")
	fs.StringSliceVar(&c.ExcludeNamespaces, "exclude-namespaces", c.ExcludeNamespaces, "namespaces whose pods are never in the mesh; node agents need the same")
	fs.StringVar(&c.Listen, "listen", c.Listen, "address of xDS and CA over TLS")
	fs.StringVar(&c.PlaintextListen, "plaintext-listen", c.PlaintextListen, "address, or unix:///path, of xDS without TLS and authentication, for debugging; empty for none")
	fs.StringSliceVar(&c.Hosts, "hosts", c.Hosts, "further DNS names and IP addresses in the serving certificate")
	fs.StringVar(&c.HealthListen, "health-listen", c.HealthListen, "address of /healthz/live and /healthz/ready; empty for none")
	fs.StringVar(&c.MetricsListen, "metrics-listen", c.MetricsListen, "address of /metrics; empty for none")
	fs.IntVar(&c.ConnectionsPerAddress, "connections-per-address", c.ConnectionsPerAddress, "connections that one address may have to each port; more where many proxies come from one address, as through a gateway; 0 for any number")
	fs.DurationVar(&c.TTL, "ca-ttl", c.TTL, "lifetime of certificates whose requests ask for none")
	fs.DurationVar(&c.MaxTTL, "max-ttl", c.MaxTTL, "longest lifetime that a request may ask for")
	fs.Float64Var(&c.CARate, "ca-rate", c.CARate, "certificates a second that one caller, a node's proxy, is given; who asks for more is told when to ask again")
	fs.IntVar(&c.CABurst, "ca-burst", c.CABurst, "certificates that one caller is given at once, as when a node starts")
	fs.DurationVar(&c.CAOverlap, "ca-overlap", c.CAOverlap, "when the CA in the Secret or in --ca-dir is replaced by another, how long the old CA goes on signing while the new one's root becomes known, and how long it goes on being trusted after; as long as proxies' certificates live, or 0 to take the new one at once, which cuts pods off from each other until they renew")
}

func (c *Config) registerWorldFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.KubeDir, "kube-dir", c.KubeDir, "folder of Kubernetes YAML that stands in for an API server (this or --kubernetes is required)")
	fs.StringVar(&c.StateDir, "state-dir", c.StateDir, "with --kube-dir: folder with the CA's key and certificates, made at the first start; root-cert.pem in it is for the proxies")
	fs.StringVar(&c.CADir, "ca-dir", c.CADir, "with --kube-dir: folder with a CA to use in place of our own: ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem, as in Istio's cacerts; followed when it changes; --state-dir then holds the root for the proxies and what is being replaced")
	fs.StringVar(&c.NodeTokens, "node-tokens", c.NodeTokens, "with --kube-dir: file of lines \"<token> <node>\", which nodes prove themselves by")
	fs.BoolVar(&c.Kubernetes, "kubernetes", c.Kubernetes, "read from a Kubernetes API server, keep the CA in a Secret there, and know proxies by their service accounts")
	fs.StringVar(&c.Kubeconfig, "kubeconfig", c.Kubeconfig, "with --kubernetes: how to reach the API server; empty for that of the cluster we run in")
	fs.StringVar(&c.Namespace, "namespace", c.Namespace, "with --kubernetes: our own namespace, for the CA's Secret and the Lease of the leader; empty for that of our service account")
	fs.StringSliceVar(&c.TrustedNodeAccounts, "trusted-node-accounts", c.TrustedNodeAccounts, "with --kubernetes: service accounts (namespace/name) of the nodes' proxies, which may read the mesh and have certificates for the pods on their node")
	fs.StringVar(&c.TokenAudience, "token-audience", c.TokenAudience, "with --kubernetes: audience that the tokens of proxies and pods must be for")
	fs.StringVar(&c.RootConfigMap, "root-configmap", c.RootConfigMap, "with --kubernetes: ConfigMap with the CA's root that is kept in every namespace; empty for none")
	fs.BoolVar(&c.PolicyStatus, "policy-status", c.PolicyStatus, "with --kubernetes: write into AuthorizationPolicies what the proxies make of them")
	fs.BoolVar(&c.WaypointStatus, "waypoint-status", c.WaypointStatus, "with --kubernetes: write into Services and ServiceEntries with the label istio.io/use-waypoint whether traffic goes through it")
	fs.BoolVar(&c.AllocateAddresses, "allocate-addresses", c.AllocateAddresses, "give hosts of ServiceEntries that have no address one of 240.240.0.0/16 and one of 2001:2::/48; with --kubernetes they are kept in the entry's status")
}

// Validate returns all mistakes at once.
func (c *Config) Validate() error {
	var errs []error
	bad := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	c.validateWorld(bad)
	if _, err := spiffeid.TrustDomainFromString(c.TrustDomain); err != nil || strings.Contains(c.TrustDomain, "/") {
		bad("trust-domain", "%q is not a trust domain, such as cluster.local", c.TrustDomain)
	}
	if c.ClusterID == "" || strings.ContainsAny(c.ClusterID, "/ \t\n") {
		bad("cluster-id", "%q must be a word without slashes", c.ClusterID)
	}
	if why := validation.IsDNS1123Subdomain(c.Domain); len(why) > 0 {
		bad("domain", "%q: %s", c.Domain, strings.Join(why, "; "))
	}
	if why := validation.IsDNS1123Label(c.RootNamespace); len(why) > 0 {
		bad("root-namespace", "%q: %s", c.RootNamespace, strings.Join(why, "; "))
	}
	if _, err := translate.ParseSelectors(c.Selectors); err != nil {
		bad("enablement-selectors", "%v", err)
	}
	c.validateListeners(bad)
	c.validateHosts(bad)
	if c.TTL <= 0 {
		bad("ca-ttl", "%s must be more than zero", c.TTL)
	}
	if c.MaxTTL < c.TTL {
		bad("max-ttl", "%s is less than --ca-ttl %s", c.MaxTTL, c.TTL)
	}
	if !(c.CARate > 0) || math.IsInf(c.CARate, 0) {
		bad("ca-rate", "%g must be more than zero", c.CARate)
	}
	if c.CABurst < 1 {
		bad("ca-burst", "%d must be at least 1", c.CABurst)
	}
	if c.CAOverlap < 0 {
		bad("ca-overlap", "%s is less than zero", c.CAOverlap)
	}
	if c.CAOverlap > 0 && c.CAOverlap < c.TTL {
		bad("ca-overlap", "%s is less than --ca-ttl %s: pods whose certificates are older than the overlap would be cut off when the CA is replaced. Make it %s or more, or 0 to take another CA at once", c.CAOverlap, c.TTL, c.TTL)
	}
	return errors.Join(errs...)
}

type complain func(flag, format string, args ...any)

// validateWorld checks what belongs to one of the two places that objects come from.
func (c *Config) validateWorld(bad complain) {
	if c.Kubernetes == (c.KubeDir != "") {
		bad("kube-dir", "exactly one is needed: it, with a folder of Kubernetes YAML, or --kubernetes")
	}
	if !c.Kubernetes {
		if c.StateDir == "" {
			bad("state-dir", "must name the folder for the CA's key and certificates")
		}
		if c.NodeTokens == "" {
			bad("node-tokens", "must name a file of lines \"<token> <node>\"")
		}
		if c.Kubeconfig != "" {
			bad("kubeconfig", "is for --kubernetes, which is not given")
		}
		return
	}
	if c.StateDir != "" {
		bad("state-dir", "is for --kube-dir: with --kubernetes the CA is in a Secret")
	}
	if c.CADir != "" {
		bad("ca-dir", "is for --kube-dir: with --kubernetes it is the Secret %s", pluggedSecret)
	}
	if c.NodeTokens != "" {
		bad("node-tokens", "is for --kube-dir: with --kubernetes proxies are known by their service accounts")
	}
	if why := validation.IsDNS1123Label(c.Namespace); c.Namespace != "" && len(why) > 0 {
		bad("namespace", "%q: %s", c.Namespace, strings.Join(why, "; "))
	}
	if _, err := c.trusted(); err != nil {
		bad("trusted-node-accounts", "%v", err)
	}
	if c.TokenAudience == "" {
		bad("token-audience", "must name an audience, such as %s", kubeauth.DefaultAudience)
	}
	if why := validation.IsDNS1123Subdomain(c.RootConfigMap); c.RootConfigMap != "" && len(why) > 0 {
		bad("root-configmap", "%q: %s", c.RootConfigMap, strings.Join(why, "; "))
	}
}

func (c *Config) validateListeners(bad complain) {
	if c.Listen == "" {
		bad("listen", "must be an address, such as %s", defaultListen)
	}
	seen := make(map[string]string)
	for _, l := range []struct{ flag, value string }{
		{"listen", c.Listen}, {"plaintext-listen", c.PlaintextListen}, {"health-listen", c.HealthListen}, {"metrics-listen", c.MetricsListen},
	} {
		path, unix := strings.CutPrefix(l.value, "unix://")
		switch {
		case l.value == "":
			continue
		case unix && l.flag != "plaintext-listen":
			bad(l.flag, "%q: only --plaintext-listen can be a Unix socket", l.value)
		case unix && !strings.HasPrefix(path, "/"):
			bad(l.flag, "%q: unix:// must be followed by an absolute path", l.value)
		case !unix && !hostPort(l.value):
			bad(l.flag, "%q is not an address, such as 127.0.0.1:15012 or :15012", l.value)
		case seen[l.value] != "" && !strings.HasSuffix(l.value, ":0"):
			bad(l.flag, "%q is the address of --%s", l.value, seen[l.value])
		}
		seen[l.value] = l.flag
	}
	if c.ConnectionsPerAddress < 0 {
		bad("connections-per-address", "%d is less than zero", c.ConnectionsPerAddress)
	}
}

func hostPort(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

func (c *Config) validateHosts(bad complain) {
	if len(c.Hosts) > maxHosts {
		bad("hosts", "%d of them, at most %d are possible", len(c.Hosts), maxHosts)
	}
	for _, h := range c.Hosts {
		if _, err := netip.ParseAddr(h); err == nil {
			continue
		}
		if why := validation.IsDNS1123Subdomain(h); len(why) > 0 {
			bad("hosts", "%q is neither an IP address nor a DNS name: %s", h, strings.Join(why, "; "))
		}
	}
}

// options is the part of the config that the model is made by.
func (c *Config) options() (translate.Options, error) {
	selectors, err := translate.ParseSelectors(c.Selectors, c.ExcludeNamespaces...)
	return translate.Options{
		Selectors:     selectors,
		ClusterID:     c.ClusterID,
		TrustDomain:   c.TrustDomain,
		Domain:        c.Domain,
		RootNamespace: c.RootNamespace,
		Network:       c.Network,
		// Nobody annotates pods in a folder: the agent that reads the same folder
		// redirects those that are eligible. In an API server the agent's annotation counts.
		AssumeRedirected: !c.Kubernetes,
		DryRunPolicies:   c.DryRun,
	}, err
}

// lifetimes bounds those of certificates.
func (c *Config) lifetimes() authority.Policy {
	td, _ := spiffeid.TrustDomainFromString(c.TrustDomain) // Validate has looked at it
	return authority.Policy{DefaultTTL: c.TTL, MaxTTL: c.MaxTTL, TrustDomain: td}
}

// LogValue is the effective configuration. It holds paths of secrets and no secrets.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("kube-dir", c.KubeDir),
		slog.String("state-dir", c.StateDir),
		slog.String("ca-dir", c.CADir),
		slog.String("node-tokens", c.NodeTokens),
		slog.Bool("kubernetes", c.Kubernetes),
		slog.String("kubeconfig", c.Kubeconfig),
		slog.String("namespace", c.Namespace),
		slog.Any("trusted-node-accounts", c.TrustedNodeAccounts),
		slog.String("token-audience", c.TokenAudience),
		slog.String("root-configmap", c.RootConfigMap),
		slog.Bool("policy-status", c.PolicyStatus),
		slog.Bool("waypoint-status", c.WaypointStatus),
		slog.Bool("allocate-addresses", c.AllocateAddresses),
		slog.String("trust-domain", c.TrustDomain),
		slog.String("cluster-id", c.ClusterID),
		slog.String("domain", c.Domain),
		slog.String("root-namespace", c.RootNamespace),
		slog.String("network", c.Network),
		slog.Bool("dry-run-policies", c.DryRun),
		slog.String("enablement-selectors", c.Selectors),
		slog.Any("exclude-namespaces", c.ExcludeNamespaces),
		slog.String("listen", c.Listen),
		slog.String("plaintext-listen", c.PlaintextListen),
		slog.Any("hosts", c.Hosts),
		slog.String("health-listen", c.HealthListen),
		slog.String("metrics-listen", c.MetricsListen),
		slog.Int("connections-per-address", c.ConnectionsPerAddress),
		slog.Duration("ca-ttl", c.TTL),
		slog.Duration("max-ttl", c.MaxTTL),
		slog.Float64("ca-rate", c.CARate),
		slog.Int("ca-burst", c.CABurst),
		slog.Duration("ca-overlap", c.CAOverlap),
	)
}
