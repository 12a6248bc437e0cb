package proxy

import (
	"cmp"
	"encoding/json"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/proxy/admin"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// line is what is known of the state of a line to something we depend on.
type line struct {
	mu sync.Mutex
	l  admin.Line
}

// lines are those that we watch ourselves; xDS knows its own.
type lines struct{ ca, zds line }

func (l *line) address(a string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.l.Address, l.l.State = a, "idle"
}

func (l *line) get() admin.Line {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.l
}

// set notes a state, and how it came about.
func (l *line) set(state string, success bool, err error) {
	now := time.Now().UTC()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.l.State != state {
		l.l.State, l.l.Since = state, &now
	}
	if success {
		l.l.LastSuccess = &now
	}
	if err != nil {
		l.l.LastError = err.Error()
	}
}

// state notes what zds.Client says.
func (l *line) state(connected, synced bool) {
	if connected {
		l.set("connected", synced, nil)
	} else {
		l.set("connecting", false, nil)
	}
}

// caObserver watches certificate requests: they are all that is seen of the CA.
type caObserver struct{ s *Server }

func (o *caObserver) Started(spiffeid.ID, svid.Priority) {}

func (o *caObserver) Finished(_ spiffeid.ID, _ svid.Priority, _ time.Duration, err error) {
	if err != nil {
		o.s.metrics.certFailures.Inc()
		o.s.lines.ca.set("failing", false, err)
		return
	}
	o.s.metrics.certs.Inc()
	o.s.lines.ca.set("connected", true, nil)
}

func (s *Server) allLines() admin.Lines {
	l := admin.Lines{CA: s.lines.ca.get(), ZDS: s.lines.zds.get(), XDS: admin.Line{Address: s.cfg.LocalXDS, State: "off"}}
	if s.xds != nil {
		st := s.xds.Status()
		l.XDS = admin.Line{
			Address: st.Address, State: string(st.State), Since: moment(st.Since), LastError: st.LastError, LastSuccess: moment(st.LastSuccess),
		}
	}
	return l
}

// moment is a time for a dump; the zero time is none.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// source is what the administration port shows.
func (s *Server) source() admin.Source {
	return admin.Source{
		View: s.store.View, Static: func() workload.Batch { return s.static }, Certs: s.certs.Dump, Pods: s.podList,
		Connections: s.tracked.Snapshot, Lines: s.allLines, Config: func() map[string]any { return configMap(s.cfg) },
		Version: s.versions(), Ready: s.ready, Logging: s.logs.filter, Quit: s.Quit,
	}
}

// podList is what /debug/pods shows.
func (s *Server) podList() []admin.Pod {
	certs := make(map[string]svid.State)
	for _, c := range s.certs.Dump() {
		certs[c.ID.String()] = c
	}
	var out []admin.Pod
	view := s.store.View()
	for _, p := range s.pods.list() {
		count := s.tracked.Pod(p.uid)
		a := admin.Pod{
			UID: p.uid, Name: p.info.Name, Namespace: p.info.Namespace, ServiceAccount: p.info.ServiceAccount, Netns: p.ns.String(),
			State: "Up", Listeners: p.ports(), Inbound: count.Inbound, Outbound: count.Outbound, CertState: "Initializing",
		}
		if self := p.current(view); self == nil {
			a.Error = "the control plane does not know this pod"
		} else {
			a.Identity = principal(self.Identity())
		}
		if c, ok := certs[a.Identity]; ok {
			a.CertState = c.Text()
			if c.Identity != nil {
				a.Expires = moment(c.Identity.NotAfter())
			}
		}
		out = append(out, a)
	}
	return append(out, s.pods.pendingList()...)
}

// pendingList are the pods that are not served yet, by UID.
func (ps *pods) pendingList() []admin.Pod {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var out []admin.Pod
	for uid, p := range ps.pending {
		out = append(out, admin.Pod{
			UID: uid, Name: p.w.Info.Name, Namespace: p.w.Info.Namespace, ServiceAccount: p.w.Info.ServiceAccount,
			Netns: p.w.NS.ID().String(), State: "Pending", Listeners: []string{}, Error: p.err.Error(),
		})
	}
	return out
}

// tag is the version that istio_build shows: the mesh's, if the chart says it.
func (s *Server) tag() string {
	return cmp.Or(s.cfg.Metadata["ISTIO_VERSION"], "unknown")
}

func (s *Server) versions() map[string]string {
	v := map[string]string{
		"buildProfile": "release", "buildStatus": "Clean", "cryptoProvider": "go-crypto", "gitRevision": "unknown",
		"istioVersion": s.tag(), "version": s.version,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		v["goVersion"] = info.GoVersion
		for _, set := range info.Settings {
			switch {
			case set.Key == "vcs.revision":
				v["gitRevision"] = set.Value
			case set.Key == "vcs.modified" && set.Value == "true":
				v["buildStatus"] = "Modified"
			}
		}
	}
	return v
}

// configText is the configuration in one line, without secrets.
func configText(c Config) string {
	b, err := json.Marshal(configMap(c))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// configMap is the effective configuration under ztunnel's names. What may hold
// a secret is told by where it comes from, or not at all.
func configMap(c Config) map[string]any {
	duration := func(d time.Duration) map[string]any {
		return map[string]any{"secs": int64(d / time.Second), "nanos": int64(d % time.Second)}
	}
	listen := func(port int) string {
		if c.IPv6 {
			return "[::]:" + itoa(port)
		}
		return "0.0.0.0:" + itoa(port)
	}
	return map[string]any{
		"proxy": true, "dnsProxy": false, "proxyMode": "Shared", "localNode": c.NodeName, "network": c.Network,
		"clusterId": c.ClusterID, "clusterDomain": c.ClusterDomain, "trustDomain": c.TrustDomain,
		"windowSize": c.HBONE.StreamWindow, "connectionWindowSize": c.HBONE.ConnWindow, "frameSize": c.HBONE.MaxFrame,
		"poolMaxStreamsPerConn": c.HBONE.PoolStreams, "poolUnusedReleaseTimeout": duration(c.HBONE.IdleRelease),
		"adminAddr": c.Admin.String(), "statsAddr": c.Stats.String(), "readinessAddr": c.Ready.String(),
		"inboundAddr": listen(HBONEPort), "inboundPlaintextAddr": listen(PlaintextPort), "outboundAddr": listen(OutboundPort),
		"illegalPorts": []int{OutboundPort, PlaintextPort, HBONEPort},
		"caAddress":    c.CA.Address, "caRootCert": rootText(c.CA.RootCA), "altCaHostname": c.CA.AltName, "caHeaders": headerNames(c.CA.Headers),
		"xdsAddress": c.XDS.Address, "xdsRootCert": rootText(c.XDS.RootCA), "altXdsHostname": c.XDS.AltName, "xdsHeaders": headerNames(c.XDS.Headers),
		"authToken": c.Token.String(), "localXdsPath": c.LocalXDS, "xdsOnDemand": false, "fakeCa": c.FakeCA,
		"secretTtl": duration(c.SecretTTL), "selfTerminationDeadline": duration(c.DrainDeadline), "inpodUds": c.ZDSPath,
		"inpodPortReuse": c.Sockets.ReusePort, "packetMark": c.Sockets.Mark, "requireOriginalSource": original(c.Sockets.Transparent),
		"socketConfig": map[string]any{
			"keepaliveTime": duration(c.Sockets.Keepalive.Idle), "keepaliveInterval": duration(c.Sockets.Keepalive.Interval),
			"keepaliveRetries": c.Sockets.Keepalive.Count, "keepaliveEnabled": c.Sockets.Keepalive != sockopt.Keepalive{},
			"userTimeoutEnabled": c.Sockets.UserTimeout > 0,
		},
		"ipv6Enabled": c.IPv6, "enableEnhancedBaggage": c.ResponseBaggage, "proxyMetadata": c.Metadata,
		"numWorkerThreads": c.Threads, "logLevel": c.Log.Filter, "logJson": c.Log.JSON,
	}
}

func original(m sockopt.Mode) any {
	switch m {
	case sockopt.On:
		return true
	case sockopt.Off:
		return false
	}
	return nil
}

func rootText(s string) any {
	switch {
	case s == "SYSTEM":
		return "Default"
	case strings.Contains(s, "-----BEGIN"):
		return "Static"
	}
	return map[string]string{"File": s}
}

// headerNames leaves the values out: headers are where tokens go.
func headerNames(h [][2]string) []string {
	out := []string{}
	for _, kv := range h {
		out = append(out, kv[0])
	}
	return out
}

// countOf is a Count for a log line.
func countText(c track.Count) string { return itoa(c.Inbound) + " in, " + itoa(c.Outbound) + " out" }
