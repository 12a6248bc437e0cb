package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/sockopt"
)

// Config is everything that can be set. FromEnviron makes one that is complete;
// whoever builds one by hand starts from Defaults.
type Config struct {
	// Who this proxy is.
	NodeName       string
	Network        string
	ClusterID      string
	ClusterDomain  string
	TrustDomain    string
	PodName        string
	PodNamespace   string
	ServiceAccount string
	InstanceIP     string
	// Metadata and MetadataJSON are told to the control plane beside the above;
	// values of the latter are JSON.
	Metadata, MetadataJSON map[string]string

	XDS, CA   Upstream
	SVIDs     SVIDs
	TLS       mtls.Policy // TLS12_ENABLED, COMPLIANCE_POLICY; of the whole process
	SVIDFile  string      // SVID_CONFIG: settings of the source of certificates that may change while we run
	CRLPath   string      // CRL_PATH: a file of revocation lists, looked at every 2 s; empty: none
	Token     Token
	LocalXDS  string // path of a static configuration; empty: none
	LocalText string // a static configuration itself; empty: none
	OnDemand  bool   // ask for workloads when a connection needs them, instead of following all
	FakeCA    bool   // certificates from nowhere: for tests and demonstrations
	SecretTTL time.Duration

	ZDSPath string
	Sockets sockopt.Config
	IPv6    bool
	HBONE   hbone.Config

	// Dedicated: the proxy is one pod's, Pod, in its own namespace.
	Dedicated bool
	Pod       zds.Info

	DNS             bool   // answer the queries of pods
	DNSOnly         bool   // and do nothing else for them (ENABLE_PROXY=false)
	PreferNamespace string // for DNS, of namespaces that are neither the client's own nor canonical
	ResolvConf      string // names the resolvers for queries of which it is not known whom the pod asked
	SOCKS5          bool

	DrainDeadline   time.Duration // for connections that live when the proxy ends
	SameNode        bool          // between two pods of this node: from socket to socket, without TLS
	ConnectRetries  int           // how many more endpoints of a service a connection goes to; 0: none
	PeerSeries      int           // of metrics, that peers have a say in; a pod's peers have a tenth of them; 0: none
	ResponseBaggage bool          // send and read baggage about workloads
	// LocalhostTunnel: applications that take PROXY protocol are reached on loopback.
	LocalhostTunnel bool
	// Nameservers are asked about the hostnames of workloads; empty: those of the
	// proxy's own resolv.conf.
	Nameservers   []netip.AddrPort
	PolicyInfoLog bool // log decisions of policies at info instead of debug
	Log           LogConfig
	Threads       int   // how many run Go code at once; 0: as CPU and the machine say
	CPU           CPUs  // what Threads is found by
	MemoryLimit   int64 // bytes, Go's soft limit; found, not set

	Admin, Stats, Ready netip.AddrPort // listeners in the proxy's own namespace
}

// Upstream is where the control plane's xDS or CA service is.
type Upstream struct {
	Address string // https://, http:// or unix://; empty: there is none
	RootCA  string // a path, "SYSTEM", or PEM
	AltName string // a further name that the server may have
	Headers [][2]string
}

// Token authenticates us to the control plane: a file, which is read anew each
// time, or the text itself. It is never printed.
type Token struct{ Path, Text string }

// String says where the token comes from.
func (t Token) String() string {
	switch {
	case t.Path != "":
		return "file " + t.Path
	case t.Text != "":
		return "(given)"
	}
	return "none"
}

// GoString, LogValue and MarshalJSON keep every other way of printing from
// showing the text.
func (t Token) GoString() string { return t.String() }

// LogValue is String for slog.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalJSON is String for JSON.
func (t Token) MarshalJSON() ([]byte, error) { return json.Marshal(t.String()) }

// Read returns the token, empty when there is none to send.
func (t Token) Read() (string, error) {
	if t.Path == "" {
		return t.Text, nil
	}
	b, err := os.ReadFile(t.Path)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return "", fmt.Errorf("token file %s is empty", t.Path)
	}
	return text, nil
}

// Defaults of what Istio's users know by these names.
const (
	defaultZDSPath   = "/var/run/ztunnel/ztunnel.sock"
	defaultRootCA    = "./var/run/secrets/istio/root-cert.pem"
	defaultTokenPath = "./var/run/secrets/tokens/istio-token"
	defaultInstance  = "1.1.1.1"
	inClusterIstiod  = "https://istiod.istio-system.svc:15012"
	localIstiod      = "https://localhost:15012"
)

// Defaults is the configuration of an empty environment.
func Defaults() Config {
	return Config{
		ClusterID: "Kubernetes", ClusterDomain: "cluster.local", TrustDomain: "cluster.local", InstanceIP: defaultInstance,
		XDS:       Upstream{Address: localIstiod, RootCA: defaultRootCA},
		CA:        Upstream{Address: localIstiod, RootCA: defaultRootCA},
		SecretTTL: 24 * time.Hour,
		ZDSPath:   defaultZDSPath,
		Sockets:   sockopt.Defaults(),
		IPv6:      true,
		HBONE: hbone.Config{
			StreamWindow: 4 << 20, ConnWindow: 16 << 20, MaxFrame: 1 << 20, PoolStreams: 100, IdleRelease: 5 * time.Minute,
		},
		DNS: true, ResolvConf: "/etc/resolv.conf",
		DrainDeadline:   5 * time.Second,
		SameNode:        true,
		ConnectRetries:  defaultRetries,
		PeerSeries:      maxTold,
		ResponseBaggage: true,
		LocalhostTunnel: true,
		Log:             LogConfig{Filter: "info"},
		Admin:           netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), AdminPort),
		Stats:           netip.AddrPortFrom(netip.IPv6Unspecified(), StatsPort),
		Ready:           netip.AddrPortFrom(netip.IPv6Unspecified(), ReadyPort),
	}
}

// Validate reports everything that does not fit together.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if c.Dedicated && (c.Pod.Name == "" || c.Pod.Namespace == "" || c.Pod.ServiceAccount == "") {
		bad("PROXY_WORKLOAD_INFO: a proxy of one pod, PROXY_MODE=dedicated, has to know whose: want namespace/name/serviceaccount")
	}
	if c.ZDSPath == "" && !c.Dedicated {
		bad("INPOD_UDS: a path is needed, pods come from there")
	}
	if c.XDS.Address == "" && c.LocalXDS == "" && c.LocalText == "" {
		bad("XDS_ADDRESS is empty and neither LOCAL_XDS_PATH nor LOCAL_XDS is set: no workload would ever be known")
	}
	if c.LocalXDS != "" && c.LocalText != "" {
		bad("LOCAL_XDS and LOCAL_XDS_PATH are both set: want the text or the path of a file, not both")
	}
	if c.DNSOnly && !c.DNS {
		bad("ENABLE_PROXY and ISTIO_META_DNS_CAPTURE are both false: nothing would be left to do")
	}
	if c.OnDemand && c.NodeName == "" {
		bad("XDS_ON_DEMAND needs NODE_NAME: of workloads only the node's own come unasked")
	}
	if c.OnDemand && strings.EqualFold(c.Metadata["DNS_CAPTURE"], "true") {
		bad("XDS_ON_DEMAND does not go with ISTIO_META_DNS_CAPTURE: to answer for names, all services have to be known")
	}
	if c.CA.Address == "" && !c.FakeCA && c.SVIDs.source() == fromCA {
		bad("CA_ADDRESS is empty: certificates have to come from somewhere")
	}
	if err := c.SVIDs.validate(); err != nil {
		errs = append(errs, err)
	}
	for _, up := range []struct {
		name string
		Upstream
	}{{"XDS_ADDRESS", c.XDS}, {"CA_ADDRESS", c.CA}} {
		if up.Address != "" && !validAddress(up.Address) {
			bad("%s: %q: want https://host:port, http://host:port or unix:///path", up.name, up.Address)
		}
	}
	if c.SecretTTL <= 0 {
		bad("SECRET_TTL: %s is no lifetime", c.SecretTTL)
	}
	if c.DrainDeadline < 0 {
		bad("CONNECTION_TERMINATION_DEADLINE: %s is negative", c.DrainDeadline)
	}
	if h := c.HBONE; h.StreamWindow > 1<<31-1 || h.ConnWindow > 1<<31-1 {
		bad("HTTP2_STREAM_WINDOW_SIZE, HTTP2_CONNECTION_WINDOW_SIZE: at most %d", 1<<31-1)
	}
	if f := c.HBONE.MaxFrame; f != 0 && (f < 16384 || f > 1<<24-1) {
		bad("HTTP2_FRAME_SIZE: %d is not between 16384 and %d", f, 1<<24-1)
	}
	if _, err := newLevels(c.Log.Filter); err != nil {
		bad("RUST_LOG: %w", err)
	}
	return errors.Join(errs...)
}

// validAddress says whether both clients of the control plane take an address.
func validAddress(address string) bool {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return false
	case u.Scheme == "unix":
		return u.Host == "" && strings.HasPrefix(u.Path, "/") && len(u.Path) > 1
	case u.Scheme == "https", u.Scheme == "http":
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		return err == nil && port > 0 && u.Hostname() != "" && strings.Trim(u.Path, "/") == ""
	}
	return false
}
