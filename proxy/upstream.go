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

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/xds/client"
	"github.com/warren-mesh/warren/xds/workload"
)

// newState makes the sources of the world: a file, which is read once, or its text, and
// the control plane.
func (s *Server) newState() error {
	if path := s.cfg.LocalXDS; path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("LOCAL_XDS_PATH: %w", err)
		}
		if s.static, err = workload.ParseStatic(text); err != nil {
			return fmt.Errorf("LOCAL_XDS_PATH: %s: %w", path, err)
		}
	}
	if text := s.cfg.LocalText; text != "" {
		var err error
		if s.static, err = workload.ParseStatic([]byte(text)); err != nil {
			return fmt.Errorf("LOCAL_XDS: %w", err)
		}
	}
	s.store.Apply(s.static)
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
		OnDemand: s.cfg.OnDemand,
		Node: client.Node{
			IP: s.cfg.InstanceIP, PodName: s.cfg.PodName, Namespace: s.cfg.PodNamespace,
			NodeName: s.cfg.NodeName, ClusterID: s.cfg.ClusterID, Metadata: meta,
		},
	}, s.store)
	return err
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
