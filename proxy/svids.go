package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/source/delegated"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/internal/owner"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/proxy/track"
)

// Values of SVID_SOURCE.
const (
	fromCA          = "istio"
	fromBroker      = "broker"
	fromDelegated   = "delegated"
	fromWorkloadAPI = "workload-api"
	fromFiles       = "file"
)

// defaultOverlap is how long the roots of a source of before are trusted: the usual life of a certificate of its.
const defaultOverlap = 24 * time.Hour

// SVIDs says where certificates come from when not from a CA that signs requests, and what else is trusted.
type SVIDs struct {
	Source   string        // SVID_SOURCE
	Reuse    svid.Reuse    // SVID_REUSE: what pods of one identity may use of each other
	Endpoint string        // SPIFFE_ENDPOINT_SOCKET: the Workload API, for the proxy's own identity
	Broker   string        // SPIFFE_BROKER_SOCKET
	Admin    string        // SPIRE_ADMIN_SOCKET: the Delegated Identity API
	Attest   string        // SPIRE_ATTEST: pid or selectors
	Proc     string        // HOST_PROC: where the host's /proc is, for attesting by PID
	Self     string        // SPIFFE_ID: which of the proxy's own identities is meant
	Agent    string        // SPIRE_AGENT_ID: who serves the Broker API; empty: any of SPIRE's agents
	AgentUID int           // SPIFFE_SOCKET_UID: a user who may serve these sockets beside root and our own
	Files    string        // SVID_DIR
	Roots    string        // SVID_EXTRA_ROOTS: a file of roots that are trusted beside the source's
	Overlap  time.Duration // SVID_OVERLAP: how long the roots of a source of before are
}

// svids reads what may be set in SVID_CONFIG's file, too; c has what holds where nothing is said.
func (e *environ) svids(c *Config) {
	v := c.SVIDs
	if v == (SVIDs{}) { // nothing has been said at all: none is none where something has
		v.Overlap = defaultOverlap
	}
	c.SVIDs = SVIDs{
		Source:   e.text("SVID_SOURCE", v.source()),
		Reuse:    svid.Reuse(e.text("SVID_REUSE", string(cmp.Or(v.Reuse, svid.Strict)))),
		Endpoint: e.text("SPIFFE_ENDPOINT_SOCKET", v.Endpoint),
		Broker:   e.text("SPIFFE_BROKER_SOCKET", v.Broker),
		Admin:    e.text("SPIRE_ADMIN_SOCKET", v.Admin),
		Attest:   e.text("SPIRE_ATTEST", cmp.Or(v.Attest, string(delegated.PID))),
		Proc:     e.text("HOST_PROC", cmp.Or(v.Proc, "/proc")),
		Self:     e.text("SPIFFE_ID", v.Self),
		Agent:    e.text("SPIRE_AGENT_ID", v.Agent),
		AgentUID: int(e.number("SPIFFE_SOCKET_UID", uint64(v.AgentUID), 0, math.MaxInt32)), //nolint:gosec // within int
		Files:    e.text("SVID_DIR", v.Files),
		Roots:    e.text("SVID_EXTRA_ROOTS", v.Roots),
		Overlap:  e.duration("SVID_OVERLAP", v.Overlap),
	}
}

// validate names what a source needs and has not.
func (v SVIDs) validate() error {
	needs := map[string][][2]string{
		fromCA:          {},
		fromBroker:      {{"SPIFFE_BROKER_SOCKET", v.Broker}, {"SPIFFE_ENDPOINT_SOCKET", v.Endpoint}},
		fromDelegated:   {{"SPIRE_ADMIN_SOCKET", v.Admin}},
		fromWorkloadAPI: {{"SPIFFE_ENDPOINT_SOCKET", v.Endpoint}},
		fromFiles:       {{"SVID_DIR", v.Files}},
	}
	list, ok := needs[v.source()]
	if !ok {
		return fmt.Errorf("SVID_SOURCE: %q: want %s, %s, %s, %s or %s", v.Source, fromCA, fromBroker, fromDelegated, fromWorkloadAPI, fromFiles)
	}
	var errs []error
	for _, n := range list {
		if n[1] == "" {
			errs = append(errs, fmt.Errorf("%s is empty: SVID_SOURCE=%s needs it", n[0], v.Source))
		}
	}
	for _, n := range [][2]string{{"SPIFFE_ID", v.Self}, {"SPIRE_AGENT_ID", v.Agent}} {
		if _, err := parseID(n[1]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", n[0], err))
		}
	}
	if err := v.validateReuse(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// validateReuse: only where SPIRE is asked by processes can a pod be proven here by the same facts. The Broker API forbids
// to use what it gave one pod for another.
func (v SVIDs) validateReuse() error {
	switch v.Reuse {
	case "", svid.Strict:
		return nil
	case svid.Confirm, svid.Local:
		if v.source() == fromDelegated && v.Attest == string(delegated.PID) {
			return nil
		}
		return fmt.Errorf("SVID_REUSE: %s needs SVID_SOURCE=%s and SPIRE_ATTEST=%s; nothing else lets pods be proven on this node", v.Reuse, fromDelegated, delegated.PID)
	}
	return fmt.Errorf("SVID_REUSE: %q: want %s, %s or %s", v.Reuse, svid.Strict, svid.Confirm, svid.Local)
}

// source is fromCA in a configuration that was built by hand and says nothing.
func (v SVIDs) source() string {
	if v.Source == "" {
		return fromCA
	}
	return v.Source
}

// agents are whose sockets are believed.
func (v SVIDs) agents() owner.Trusted { return owner.Trusted{v.AgentUID} }

// parseID takes nothing for the zero ID.
func parseID(s string) (spiffeid.ID, error) {
	if s == "" {
		return spiffeid.ID{}, nil
	}
	return spiffeid.FromString(s)
}

// errWithdrawn is why connections end whose pod has lost its identity.
var errWithdrawn = errors.New("the pod's identity was withdrawn")

// judgeSoon has the peers of all tunnels judged again.
func (s *Server) judgeSoon() {
	select {
	case s.rootsChanged <- struct{}{}:
	default:
	}
}

// withdrawn ends what a pod has with an identity that its source took back.
func (s *Server) withdrawn(pod svid.Pod, id spiffeid.ID, why error) {
	s.log.Warn("the pod's identity was withdrawn, its mesh connections end", "uid", pod.UID, "pod", pod.Namespace+"/"+pod.Name, "identity", id.String(), "err", why)
	for _, p := range s.pods.list() {
		if p.uid == pod.UID {
			p.renounce()
		}
	}
	s.tracked.Cut(func(g *track.Guard) bool { return g.Facts.Pod == pod.UID && g.Facts.Protocol != route.TCP.String() }, errWithdrawn)
}

// renounce has all tunnels of the pod, in both directions, take nothing new.
func (p *pod) renounce() {
	p.pool.Retire()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.endTerm != nil {
		p.endTerm()
	}
	p.term, p.endTerm = context.WithCancel(p.soft)
}

// tenure is how long tunnels that are accepted now may take requests: until the pod's certificate is withdrawn, or it
// ends.
func (p *pod) tenure() context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term == nil {
		p.term, p.endTerm = context.WithCancel(p.soft)
	}
	return p.term
}

// overtaken reports whether the identity with which the tunnel was accepted has been withdrawn: until the peer has heard
// that it drains, requests still come. Of a pod that ends they are welcome.
func (t *tunnel) overtaken() bool { return t.term.Err() != nil && t.p.soft.Err() == nil }

// warmUp asks for the pod's certificate before anybody needs it, where only the pod itself can be asked for.
func (p *pod) warmUp() {
	if p.s.certs.Streams() {
		p.work.Go(func() {
			if _, self, err := p.speaker(p.soft); err == nil {
				_, _ = p.hold(self) // whoever needs it gets the error
			}
		})
	}
}

// stateOf is the certificate of one pod in a dump.
func stateOf(certs []svid.State, uid, id string) (svid.State, bool) {
	for _, c := range certs {
		if c.ID.String() == id && (c.Holder == "" || strings.EqualFold(c.Holder, uid)) {
			return c, true
		}
	}
	return svid.State{}, false
}
