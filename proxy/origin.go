package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/broker"
	"github.com/warren-mesh/warren/ca/source/delegated"
	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/source/file"
	"github.com/warren-mesh/warren/ca/source/istio"
	"github.com/warren-mesh/warren/ca/source/workloadapi"
	"github.com/warren-mesh/warren/ca/svid"
)

// origin is where certificates come from: a source, and what it takes.
type origin struct {
	svid.Source
	cfg     Config // by which it was made
	address string
	self    *workloadapi.Self // the proxy's own identity; nil: it needs none
	closers []io.Closer

	stop context.CancelFunc // nil: it does not run
	work sync.WaitGroup
}

// run keeps what the source needs going until ctx ends or close is called.
func (o *origin) run(ctx context.Context) {
	if o.self == nil {
		return
	}
	ctx, o.stop = context.WithCancel(ctx)
	o.work.Go(func() { _ = o.self.Run(ctx) }) // nil, when ctx has ended
}

// close lets go of everything, the last first.
func (o *origin) close() error {
	if o.stop != nil {
		o.stop()
	}
	o.work.Wait()
	var errs []error
	for i := len(o.closers) - 1; i >= 0; i-- {
		errs = append(errs, o.closers[i].Close())
	}
	o.closers = nil
	return errors.Join(errs...)
}

// newCerts makes the keeper of certificates, with given as their source if there is one.
func (s *Server) newCerts(given svid.Signer) (err error) {
	if _, err := s.loadRevocations(); err != nil { // as ztunnel: it must not keep a node from starting
		s.log.Warn("no certificate is known to be revoked", "path", s.cfg.CRLPath, "err", err)
	}
	if given != nil {
		s.origin = &origin{cfg: s.cfg, Source: svid.Source{Signer: given}, address: "(given)"}
	} else {
		cfg, err := s.cfg.withSVIDFile()
		if err != nil {
			return err
		}
		if s.origin, err = s.newOrigin(cfg); err != nil {
			return err
		}
	}
	s.lines.ca.address(s.origin.address)
	src := s.origin.Source
	s.certs = svid.New(svid.Config{
		Signer: src.Signer, Watcher: src.Watcher, Prover: src.Prover, Reuse: src.Reuse,
		TTL: s.cfg.SecretTTL, Log: s.logs.scope("ca"), Observer: &caObserver{s},
		Revoked: &s.revoked, Withdrawn: s.withdrawn, RootsChanged: s.judgeSoon,
	})
	s.metrics.registry.MustRegister(svidCollector{s})
	return nil
}

// newOrigin makes the source that cfg says.
func (s *Server) newOrigin(cfg Config) (o *origin, err error) {
	o = &origin{cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.close())
		}
	}()
	v := cfg.SVIDs
	switch {
	case cfg.FakeCA:
		err = s.fakeSigner(o, cfg)
	case v.source() == fromCA:
		err = istioSigner(o, cfg)
	case v.source() == fromFiles:
		o.address = v.Files
		o.Watcher, err = file.New(v.Files, 0)
	case v.source() == fromWorkloadAPI:
		o.address = v.Endpoint
		var w *workloadapi.Source
		if w, err = workloadapi.New(v.Endpoint, v.agents()); err == nil {
			o.Watcher, o.closers = w, append(o.closers, w)
		}
	case v.source() == fromDelegated:
		err = s.delegatedWatcher(o, v)
	default:
		err = s.brokerWatcher(o, v)
	}
	return o, err
}

func (s *Server) fakeSigner(o *origin, cfg Config) error {
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return fmt.Errorf("TRUST_DOMAIN: %w", err)
	}
	o.address = "fake"
	o.Signer, err = fake.New(td, s.logs.scope("ca"))
	return err
}

func istioSigner(o *origin, c Config) error {
	up := c.CA
	tlsConfig, err := up.tls()
	if err != nil {
		return fmt.Errorf("CA_ADDRESS: %w", err)
	}
	cfg := istio.Config{Address: up.Address, TLS: tlsConfig, ClusterID: c.ClusterID, Headers: make(map[string]string), Own: c.Dedicated}
	if c.Token != (Token{}) {
		cfg.Token = c.Token.Read
	}
	for _, h := range up.Headers {
		cfg.Headers[h[0]] = h[1]
	}
	remote, err := istio.New(cfg)
	if err != nil {
		return fmt.Errorf("CA_ADDRESS: %w", err)
	}
	o.Signer, o.address, o.closers = remote, up.Address, append(o.closers, remote)
	return nil
}

func (s *Server) delegatedWatcher(o *origin, v SVIDs) error {
	log := s.logs.scope("ca")
	w, err := delegated.New(delegated.Config{Address: v.Admin, Mode: delegated.Mode(v.Attest), Proc: v.Proc, Log: log, Agents: v.agents()})
	if err != nil {
		return err
	}
	o.Watcher, o.Prover, o.Reuse, o.address, o.closers = w, w, v.Reuse, v.Admin, append(o.closers, w)
	if v.Attest == string(delegated.Selectors) {
		log.Warn("SPIRE believes this proxy's word on who a pod is: SPIRE_ATTEST=selectors")
	}
	if v.Reuse == svid.Local || v.Reuse == svid.Confirm {
		log.Warn("pods use certificates that SPIRE gave other pods of their service account: entries must not select by image, label or owner",
			"SVID_REUSE", string(v.Reuse))
	}
	return nil
}

// brokerWatcher speaks to the agent with the proxy's own identity, which the same agent gives it.
func (s *Server) brokerWatcher(o *origin, v SVIDs) error {
	own, err := workloadapi.New(v.Endpoint, v.agents())
	if err != nil {
		return fmt.Errorf("SPIFFE_ENDPOINT_SOCKET: %w", err)
	}
	o.closers = append(o.closers, own)
	id, err := parseID(v.Self)
	if err != nil {
		return fmt.Errorf("SPIFFE_ID: %w", err)
	}
	agent, err := parseID(v.Agent)
	if err != nil {
		return fmt.Errorf("SPIRE_AGENT_ID: %w", err)
	}
	o.self = workloadapi.NewSelf(own, id, s.logs.scope("ca"))
	w, err := broker.New(broker.Config{Address: v.Broker, TLS: mtls.ToAgent(o.self.Identity, broker.AgentID(agent)), Agents: v.agents()})
	if err != nil {
		return err
	}
	o.Watcher, o.address, o.closers = w, v.Broker, append(o.closers, w)
	return nil
}
