package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/broker"
	"github.com/warren-mesh/warren/ca/source/delegated"
	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/source/file"
	"github.com/warren-mesh/warren/ca/source/istio"
	"github.com/warren-mesh/warren/ca/source/workloadapi"
	"github.com/warren-mesh/warren/ca/svid"
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

// SVIDs says where certificates come from when not from a CA that signs requests.
type SVIDs struct {
	Source   string // SVID_SOURCE
	Endpoint string // SPIFFE_ENDPOINT_SOCKET: the Workload API, for the proxy's own identity
	Broker   string // SPIFFE_BROKER_SOCKET
	Admin    string // SPIRE_ADMIN_SOCKET: the Delegated Identity API
	Attest   string // SPIRE_ATTEST: pid or selectors
	Proc     string // HOST_PROC: where the host's /proc is, for attesting by PID
	Self     string // SPIFFE_ID: which of the proxy's own identities is meant
	Agent    string // SPIRE_AGENT_ID: who serves the Broker API; empty: any of SPIRE's agents
	Files    string // SVID_DIR
}

func (e *environ) svids(c *Config) {
	c.SVIDs = SVIDs{
		Source:   e.text("SVID_SOURCE", fromCA),
		Endpoint: e.text("SPIFFE_ENDPOINT_SOCKET", ""),
		Broker:   e.text("SPIFFE_BROKER_SOCKET", ""),
		Admin:    e.text("SPIRE_ADMIN_SOCKET", ""),
		Attest:   e.text("SPIRE_ATTEST", string(delegated.PID)),
		Proc:     e.text("HOST_PROC", "/proc"),
		Self:     e.text("SPIFFE_ID", ""),
		Agent:    e.text("SPIRE_AGENT_ID", ""),
		Files:    e.text("SVID_DIR", ""),
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
	return errors.Join(errs...)
}

// source is fromCA in a configuration that was built by hand and says nothing.
func (v SVIDs) source() string {
	if v.Source == "" {
		return fromCA
	}
	return v.Source
}

// parseID takes nothing for the zero ID.
func parseID(s string) (spiffeid.ID, error) {
	if s == "" {
		return spiffeid.ID{}, nil
	}
	return spiffeid.FromString(s)
}

// newCerts makes the keeper of certificates, with given as their source if there is one.
func (s *Server) newCerts(given svid.Signer) (err error) {
	cfg := svid.Config{
		Signer: given, TTL: s.cfg.SecretTTL, Log: s.logs.scope("ca"), Observer: &caObserver{s},
		Revoked: &s.revoked, Withdrawn: s.withdrawn, RootsChanged: s.judgeSoon,
	}
	if _, err := s.loadRevocations(); err != nil { // as ztunnel: it must not keep a node from starting
		s.log.Warn("no certificate is known to be revoked", "path", s.cfg.CRLPath, "err", err)
	}
	switch {
	case given != nil:
		s.lines.ca.address("(given)")
	case s.cfg.FakeCA:
		cfg.Signer, err = s.fakeSigner()
	case s.cfg.SVIDs.source() == fromCA:
		cfg.Signer, err = s.istioSigner()
	default:
		cfg.Watcher, err = s.watcher(s.cfg.SVIDs)
	}
	if err != nil {
		return err
	}
	s.certs = svid.New(cfg)
	return nil
}

func (s *Server) fakeSigner() (svid.Signer, error) {
	td, err := spiffeid.TrustDomainFromString(s.cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("TRUST_DOMAIN: %w", err)
	}
	s.lines.ca.address("fake")
	return fake.New(td, s.logs.scope("ca"))
}

func (s *Server) istioSigner() (svid.Signer, error) {
	up := s.cfg.CA
	tlsConfig, err := up.tls()
	if err != nil {
		return nil, fmt.Errorf("CA_ADDRESS: %w", err)
	}
	cfg := istio.Config{Address: up.Address, TLS: tlsConfig, ClusterID: s.cfg.ClusterID, Headers: make(map[string]string), Own: s.cfg.Dedicated}
	if s.cfg.Token != (Token{}) {
		cfg.Token = s.cfg.Token.Read
	}
	for _, h := range up.Headers {
		cfg.Headers[h[0]] = h[1]
	}
	remote, err := istio.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("CA_ADDRESS: %w", err)
	}
	s.sources = append(s.sources, remote)
	s.lines.ca.address(up.Address)
	return remote, nil
}

// watcher makes a source that streams.
func (s *Server) watcher(v SVIDs) (svid.Watcher, error) {
	var w interface {
		svid.Watcher
		io.Closer
	}
	var err error
	log := s.logs.scope("ca")
	switch v.source() {
	case fromFiles:
		s.lines.ca.address(v.Files)
		return file.New(v.Files, 0)
	case fromWorkloadAPI:
		s.lines.ca.address(v.Endpoint)
		w, err = workloadapi.New(v.Endpoint)
	case fromDelegated:
		s.lines.ca.address(v.Admin)
		w, err = delegated.New(delegated.Config{Address: v.Admin, Mode: delegated.Mode(v.Attest), Proc: v.Proc, Log: log})
		if v.Attest == string(delegated.Selectors) {
			log.Warn("SPIRE believes this proxy's word on who a pod is: SPIRE_ATTEST=selectors")
		}
	default:
		s.lines.ca.address(v.Broker)
		w, err = s.broker(v)
	}
	if err != nil {
		return nil, err
	}
	s.sources = append(s.sources, w)
	return w, nil
}

// broker speaks to the agent with the proxy's own identity, which the same agent gives it.
func (s *Server) broker(v SVIDs) (*broker.Source, error) {
	own, err := workloadapi.New(v.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("SPIFFE_ENDPOINT_SOCKET: %w", err)
	}
	s.sources = append(s.sources, own)
	id, err := parseID(v.Self)
	if err != nil {
		return nil, fmt.Errorf("SPIFFE_ID: %w", err)
	}
	agent, err := parseID(v.Agent)
	if err != nil {
		return nil, fmt.Errorf("SPIRE_AGENT_ID: %w", err)
	}
	self := workloadapi.NewSelf(own, id, s.logs.scope("ca"))
	s.self = self
	return broker.New(broker.Config{Address: v.Broker, TLS: mtls.ToAgent(self.Identity, broker.AgentID(agent))})
}

// closeSources lets go of where certificates come from, the last first.
func (s *Server) closeSources() error {
	var errs []error
	for i := len(s.sources) - 1; i >= 0; i-- {
		errs = append(errs, s.sources[i].Close())
	}
	return errors.Join(errs...)
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
