package proxy

import (
	"cmp"
	"runtime/debug"
	"sync"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/proxy/admin"
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
		Plaintext: s.plaintextVerdicts, Alarms: s.alarms.list, Origin: s.originName,
	}
}

// originName is where certificates come from, for dumps.
func (s *Server) originName() (address, reuse string) {
	s.originLock.Lock()
	defer s.originLock.Unlock()
	return s.origin.address, string(cmp.Or(s.origin.Reuse, svid.Strict))
}

// originKind is the kind of source that certificates come from, as SVID_SOURCE names it.
func (s *Server) originKind() string {
	s.originLock.Lock()
	defer s.originLock.Unlock()
	if s.origin.cfg.FakeCA {
		return "fake"
	}
	return s.origin.cfg.SVIDs.source()
}

// podList is what /debug/pods shows.
func (s *Server) podList() []admin.Pod {
	certs := s.certs.Dump()
	var out []admin.Pod
	view := s.store.View()
	for _, p := range s.pods.list() {
		if !p.shown() {
			continue
		}
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
		if c, ok := stateOf(certs, p.uid, a.Identity); ok {
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

// VersionText is what `proxy version` prints: the version, and what does the cryptography.
func VersionText(version string) string { return version + "\n" + mtls.CryptoProvider() + "\n" }

func (s *Server) versions() map[string]string {
	v := map[string]string{
		"buildProfile": "release", "buildStatus": "Clean", "cryptoProvider": mtls.CryptoProvider(), "gitRevision": "unknown",
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

// countText is a Count for a log line.
func countText(c track.Count) string { return itoa(c.Inbound) + " in, " + itoa(c.Outbound) + " out" }
