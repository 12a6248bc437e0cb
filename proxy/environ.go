package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/sockopt"
)

// FromEnviron reads the configuration from environment variables ("NAME=value",
// as os.Environ gives them), by the names that ztunnel's users know. A variable
// that is empty has the empty value; only one that is not there has its
// default. All mistakes are reported at once, each with the variable's name.
func FromEnviron(environ []string) (Config, error) {
	e := newEnviron(environ)
	c := Defaults()
	if _, ok := e.vars["KUBERNETES_SERVICE_HOST"]; ok {
		c.XDS.Address, c.CA.Address = inClusterIstiod, inClusterIstiod
	}
	e.meshConfig(&c)
	e.node(&c)
	e.controlPlane(&c)
	e.sockets(&c)
	e.tunnels(&c)
	e.ending(&c)
	e.mode(&c)
	e.names(&c)
	c.DNSOnly = !e.boolean("ENABLE_PROXY", true)
	c.Log.Filter = e.text("RUST_LOG", c.Log.Filter)
	switch f := e.text("LOG_FORMAT", "plain"); f {
	case "json":
		c.Log.JSON = true
	case "plain", "":
	default:
		e.bad("LOG_FORMAT", "%q is neither plain nor json", f)
	}
	c.CPU = CPUs{Limit: e.cpus("ZTUNNEL_RESOURCE_CPU_LIMIT"), Request: e.cpus("ZTUNNEL_RESOURCE_CPU_REQUEST"), Count: e.cpus("ZTUNNEL_CPU_LIMIT")}
	c.Threads = e.threads(c)
	e.errs = append(e.errs, c.Validate())
	return c, errors.Join(e.errs...)
}

// environ is the environment and what is wrong with it.
type environ struct {
	vars map[string]string
	errs []error
}

func newEnviron(list []string) *environ {
	e := &environ{vars: make(map[string]string, len(list))}
	for _, kv := range list {
		if name, value, ok := strings.Cut(kv, "="); ok && name != "" {
			e.vars[name] = value
		}
	}
	return e
}

func (e *environ) bad(name, format string, a ...any) {
	e.errs = append(e.errs, fmt.Errorf(name+": "+format, a...))
}

func (e *environ) text(name, def string) string {
	if v, ok := e.vars[name]; ok {
		return v
	}
	return def
}

func (e *environ) boolean(name string, def bool) bool {
	switch v, ok := e.vars[name]; {
	case !ok:
		return def
	case strings.EqualFold(v, "true"):
		return true
	case strings.EqualFold(v, "false"):
		return false
	default:
		e.bad(name, "%q is neither true nor false", v)
		return def
	}
}

func (e *environ) duration(name string, def time.Duration) time.Duration {
	v, ok := e.vars[name]
	if !ok {
		return def
	}
	d, err := parseDuration(v)
	if err != nil {
		e.bad(name, "%w", err)
		return def
	}
	return d
}

// number is a whole number from min to max.
func (e *environ) number(name string, def, min, max uint64) uint64 {
	v, ok := e.vars[name]
	if !ok {
		return def
	}
	n, err := parseNumber(v)
	if err != nil || n < min || n > max {
		e.bad(name, "%q is not a whole number from %d to %d", v, min, max)
		return def
	}
	return n
}

// prefixed returns the variables that begin with prefix, without it, sorted.
func (e *environ) prefixed(prefix string) [][2]string {
	var out [][2]string
	for name, v := range e.vars {
		if k, ok := strings.CutPrefix(name, prefix); ok && k != "" {
			out = append(out, [2]string{k, v})
		}
	}
	slices.SortFunc(out, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return out
}

func (e *environ) node(c *Config) {
	c.NodeName = e.text("NODE_NAME", "")
	c.Network = e.text("NETWORK", "")
	c.ClusterID = e.text("ISTIO_META_CLUSTER_ID", e.text("CLUSTER_ID", c.ClusterID))
	c.ClusterDomain = e.text("CLUSTER_DOMAIN", c.ClusterDomain)
	c.TrustDomain = e.text("TRUST_DOMAIN", c.TrustDomain)
	c.PodName = e.text("POD_NAME", "")
	c.PodNamespace = e.text("POD_NAMESPACE", "")
	c.ServiceAccount = e.text("SERVICE_ACCOUNT", "")
	c.InstanceIP = e.text("INSTANCE_IP", c.InstanceIP)
	for _, kv := range e.prefixed("ISTIO_META_") {
		c.Metadata[kv[0]] = kv[1]
	}
	for _, kv := range e.prefixed("ISTIO_METAJSON_") {
		if !validJSON(kv[1]) {
			e.bad("ISTIO_METAJSON_"+kv[0], "not JSON")
			continue
		}
		c.MetadataJSON[kv[0]] = kv[1]
	}
}

func (e *environ) controlPlane(c *Config) {
	c.XDS.Address = e.address("XDS_ADDRESS", c.XDS.Address)
	c.XDS.RootCA = e.text("XDS_ROOT_CA", c.XDS.RootCA)
	c.XDS.AltName = e.text("ALT_XDS_HOSTNAME", "")
	c.XDS.Headers = e.headers("XDS_HEADER_")
	c.CA.Headers = e.headers("CA_HEADER_")
	c.Token = e.token()
	c.FakeCA = e.boolean("FAKE_CA", false)
	e.ca(c)
	c.SVIDFile = e.text("SVID_CONFIG", "")
	c.CRLPath = e.text("CRL_PATH", "")
	c.TLS = mtls.Policy{TLS12: e.boolean("TLS12_ENABLED", false), Compliance: mtls.Compliance(e.text("COMPLIANCE_POLICY", ""))}
	c.SecretTTL = e.duration("SECRET_TTL", c.SecretTTL)
	c.LocalXDS, c.LocalText = e.text("LOCAL_XDS_PATH", ""), e.text("LOCAL_XDS", "")
	c.OnDemand = e.boolean("XDS_ON_DEMAND", false)
}

// address is a URL; a bare host:port is taken for https.
func (e *environ) address(name, def string) string {
	v := e.text(name, def)
	if v == "" || strings.Contains(v, "://") {
		return v
	}
	return "https://" + v
}

func (e *environ) headers(prefix string) [][2]string {
	var out [][2]string
	for _, kv := range e.prefixed(prefix) {
		name := strings.ToLower(kv[0])
		if !validHeader(name, kv[1]) {
			e.bad(prefix+kv[0], "not a name and value that a header can have")
			continue
		}
		out = append(out, [2]string{name, kv[1]})
	}
	return out
}

// token takes what looks like a path, or is one, for a path: a token that is
// neither begins with neither.
func (e *environ) token() Token {
	v, ok := e.vars["AUTH_TOKEN"]
	if !ok {
		v = defaultTokenPath
		if _, err := os.Stat(v); err != nil {
			return Token{}
		}
	}
	if strings.HasPrefix(v, "/") || strings.HasPrefix(v, ".") {
		return Token{Path: v}
	}
	if fi, err := os.Stat(v); v != "" && err == nil && fi.Mode().IsRegular() {
		return Token{Path: v}
	}
	return Token{Text: strings.TrimSpace(v)}
}

func (e *environ) sockets(c *Config) {
	c.ZDSPath = e.text("INPOD_UDS", c.ZDSPath)
	s := &c.Sockets
	s.ReusePort = e.boolean("INPOD_PORT_REUSE", s.ReusePort)
	s.Mark = uint32(e.number("PACKET_MARK", uint64(s.Mark), 0, 1<<32-1))
	if _, ok := e.vars["ENABLE_ORIG_SRC"]; ok {
		s.Transparent = sockopt.Off
		if e.boolean("ENABLE_ORIG_SRC", false) {
			s.Transparent = sockopt.On
		}
	}
	s.Keepalive.Idle = e.duration("KEEPALIVE_TIME", s.Keepalive.Idle)
	s.Keepalive.Interval = e.duration("KEEPALIVE_INTERVAL", s.Keepalive.Interval)
	s.Keepalive.Count = int(e.number("KEEPALIVE_RETRIES", uint64(s.Keepalive.Count), 1, 127))
	if e.boolean("USER_TIMEOUT_ENABLED", false) {
		s.UserTimeout = s.Keepalive.Idle + time.Duration(s.Keepalive.Count)*s.Keepalive.Interval
	}
	if !e.boolean("KEEPALIVE_ENABLED", true) {
		s.Keepalive = sockopt.Keepalive{}
	}
	if c.IPv6 = e.boolean("IPV6_ENABLED", c.IPv6); !c.IPv6 {
		c.Stats = netip.AddrPortFrom(netip.IPv4Unspecified(), c.Stats.Port())
		c.Ready = netip.AddrPortFrom(netip.IPv4Unspecified(), c.Ready.Port())
	}
}

func (e *environ) tunnels(c *Config) {
	h := &c.HBONE
	h.StreamWindow = uint32(e.number("HTTP2_STREAM_WINDOW_SIZE", uint64(h.StreamWindow), 65535, 1<<31-1))
	h.ConnWindow = uint32(e.number("HTTP2_CONNECTION_WINDOW_SIZE", uint64(h.ConnWindow), 65535, 1<<31-1))
	h.MaxFrame = uint32(e.number("HTTP2_FRAME_SIZE", uint64(h.MaxFrame), 16384, 1<<24-1))
	h.PoolStreams = int(e.number("POOL_MAX_STREAMS_PER_CONNECTION", uint64(h.PoolStreams), 1, 65535))
	h.IdleRelease = e.duration("POOL_UNUSED_RELEASE_TIMEOUT", h.IdleRelease)
	switch v := e.text("TLS_RECORDS", "own"); v {
	case "own":
		h.Records = hbone.OwnRecords
	case "stock":
		h.Records = hbone.StockRecords
	default:
		e.bad("TLS_RECORDS", "%q is neither own nor stock", v)
	}
	switch v := e.text("SAME_NODE", "splice"); v {
	case "splice":
		c.SameNode = true
	case "mtls":
		c.SameNode = false
	default:
		e.bad("SAME_NODE", "%q is neither splice nor mtls", v)
	}
	c.ConnectRetries = int(e.number("CONNECT_RETRIES", uint64(c.ConnectRetries), 0, maxRetries))
	c.PeerSeries = int(e.number("METRICS_PEER_SERIES", uint64(c.PeerSeries), 0, maxToldMost))
	c.ResponseBaggage = e.boolean("ENABLE_RESPONSE_BAGGAGE", c.ResponseBaggage)
	c.LocalhostTunnel = e.boolean("LOCALHOST_APP_TUNNEL", c.LocalhostTunnel)
	c.PolicyInfoLog = e.boolean("AUTHZ_POLICY_INFO_LOGGING", false)
}

// ending is the deadline for connections when the proxy is told to end. It
// leaves some of Kubernetes' grace period for itself.
func (e *environ) ending(c *Config) {
	if _, ok := e.vars["TERMINATION_GRACE_PERIOD_SECONDS"]; ok {
		secs := e.number("TERMINATION_GRACE_PERIOD_SECONDS", 0, 0, 1<<31)
		if secs > 10 {
			secs -= 5
		} else {
			secs = max(secs, 2) - 1
		}
		c.DrainDeadline = time.Duration(secs) * time.Second
	}
	c.DrainDeadline = e.duration("CONNECTION_TERMINATION_DEADLINE", c.DrainDeadline)
}
