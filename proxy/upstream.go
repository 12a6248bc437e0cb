package proxy

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/source/istio"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/xds/client"
	"github.com/warren-mesh/warren/xds/workload"
)

// newState makes the sources of the world: a file, which is read once, and the
// control plane.
func (s *Server) newState() error {
	if path := s.cfg.LocalXDS; path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("LOCAL_XDS_PATH: %w", err)
		}
		if s.static, err = workload.ParseStatic(text); err != nil {
			return fmt.Errorf("LOCAL_XDS_PATH: %s: %w", path, err)
		}
		s.store.Apply(s.static)
	}
	up := s.cfg.XDS
	if up.Address == "" {
		return nil
	}
	tlsConfig, err := up.tls()
	if err != nil {
		return fmt.Errorf("XDS_ADDRESS: %w", err)
	}
	meta := make(map[string]any)
	for k, v := range s.cfg.Metadata {
		meta[k] = v
	}
	for k, v := range s.cfg.MetadataJSON {
		var value any
		if err := json.Unmarshal([]byte(v), &value); err != nil {
			return fmt.Errorf("ISTIO_METAJSON_%s: %w", k, err)
		}
		meta[k] = value
	}
	s.xds, err = client.New(client.Config{
		Address: up.Address, TLS: tlsConfig, Token: s.cfg.Token.Read, Headers: up.Headers, Log: s.logs.scope("xds"), Observer: xdsObserver{s.metrics},
		Node: client.Node{
			IP: s.cfg.InstanceIP, PodName: s.cfg.PodName, Namespace: s.cfg.PodNamespace,
			NodeName: s.cfg.NodeName, ClusterID: s.cfg.ClusterID, Metadata: meta,
		},
	}, s.store)
	return err
}

// newCerts makes the keeper of certificates, with given as their source if
// there is one.
func (s *Server) newCerts(given svid.Signer) error {
	signer := given
	switch {
	case signer != nil:
		s.lines.ca.address("(given)")
	case s.cfg.FakeCA:
		td, err := spiffeid.TrustDomainFromString(s.cfg.TrustDomain)
		if err != nil {
			return fmt.Errorf("TRUST_DOMAIN: %w", err)
		}
		if signer, err = fake.New(td, s.logs.scope("ca")); err != nil {
			return err
		}
		s.lines.ca.address("fake")
	default:
		up := s.cfg.CA
		tlsConfig, err := up.tls()
		if err != nil {
			return fmt.Errorf("CA_ADDRESS: %w", err)
		}
		cfg := istio.Config{Address: up.Address, TLS: tlsConfig, ClusterID: s.cfg.ClusterID, Headers: make(map[string]string)}
		if s.cfg.Token != (Token{}) {
			cfg.Token = s.cfg.Token.Read
		}
		for _, h := range up.Headers {
			cfg.Headers[h[0]] = h[1]
		}
		remote, err := istio.New(cfg)
		if err != nil {
			return fmt.Errorf("CA_ADDRESS: %w", err)
		}
		signer, s.ca = remote, remote
		s.lines.ca.address(up.Address)
	}
	s.certs = svid.New(svid.Config{Signer: signer, TTL: s.cfg.SecretTTL, Log: s.logs.scope("ca"), Observer: &caObserver{s}})
	return nil
}

// tls is how this upstream is authenticated; nil where it is not by TLS.
func (u Upstream) tls() (func() (*tls.Config, error), error) {
	parsed, err := url.Parse(u.Address)
	if err != nil {
		return nil, err
	}
	if parsed.Scheme != "https" {
		return nil, nil
	}
	if _, _, err := net.SplitHostPort(parsed.Host); err != nil {
		return nil, errors.Join(err, errors.New("want https://host:port"))
	}
	config := mtls.ToServer(u.roots(), parsed.Hostname(), u.AltName)
	return func() (*tls.Config, error) { return config, nil }, nil
}

// roots reads the roots anew for each handshake; nil are the system's.
func (u Upstream) roots() func() ([]byte, error) {
	switch {
	case u.RootCA == "SYSTEM":
		return nil
	case strings.Contains(u.RootCA, "-----BEGIN"):
		text := []byte(u.RootCA)
		return func() ([]byte, error) { return text, nil }
	}
	return func() ([]byte, error) { return os.ReadFile(u.RootCA) }
}
