package controlplane

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	servingTTL = 30 * 24 * time.Hour
	// retryServing is how long a failure to renew is left alone.
	retryServing = time.Minute
)

// serviceName is what our Service is called in a cluster.
const serviceName = "warren-controlplane"

// hosts are the names that proxies know a control plane by, and where it listens.
func (c *Config) hosts() []string {
	out := []string{
		"istiod." + c.RootNamespace + ".svc",
		"istiod-remote." + c.RootNamespace + ".svc",
		"istio-pilot." + c.RootNamespace + ".svc",
		"istiod.istio-system.svc",
		"istiod-remote.istio-system.svc",
		"istio-pilot.istio-system.svc",
		"localhost", "127.0.0.1", "::1",
	}
	if c.Namespace != "" {
		out = append(out, serviceName+"."+c.Namespace+".svc", serviceName+"."+c.Namespace+".svc."+c.Domain, serviceName+"."+c.Namespace, "istiod."+c.Namespace+".svc")
	}
	if host, _, err := net.SplitHostPort(c.Listen); err == nil {
		if ip, err := netip.ParseAddr(host); err == nil && !ip.IsUnspecified() {
			out = append(out, ip.WithZone("").String())
		}
	}
	for _, h := range c.Hosts {
		out = append(out, strings.ToLower(h))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// serving holds the certificate of the TLS port. It is renewed in the handshake that
// first finds half of its lifetime gone, which needs no clock of its own: a port that
// nobody connects to needs no certificate.
type serving struct {
	issue issueServing
	log   *slog.Logger
	audit *slog.Logger

	mu      sync.Mutex
	cert    *tls.Certificate
	renewAt time.Time
}

// issueServing makes a certificate, and says who issues it: authority.CertID.
type issueServing func(now time.Time) (cert *tls.Certificate, issuer string, err error)

// newServing issues the first certificate.
func newServing(issue issueServing, log *slog.Logger, now time.Time) (*serving, error) {
	s := &serving{issue: issue, log: log, audit: audit(log)}
	if err := s.renewLocked(now); err != nil {
		return nil, err
	}
	return s, nil
}

// certificate returns a certificate that is valid, and asks for a new one in time.
func (s *serving) certificate(now time.Time) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.renewAt) {
		return s.cert, nil
	}
	err := s.renewLocked(now)
	if err == nil {
		return s.cert, nil
	}
	s.log.Error("cannot renew the serving certificate", "expires", s.cert.Leaf.NotAfter.UTC().Format(time.RFC3339), "err", err)
	if now.After(s.cert.Leaf.NotAfter) {
		return nil, errors.New("the serving certificate has expired and cannot be renewed")
	}
	s.renewAt = now.Add(retryServing)
	return s.cert, nil
}

// renew has the next handshake find another certificate.
func (s *serving) renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewAt = time.Time{}
}

func (s *serving) renewLocked(now time.Time) error {
	cert, issuer, err := s.issue(now)
	if err != nil {
		return err
	}
	s.cert, s.renewAt = cert, now.Add(cert.Leaf.NotAfter.Sub(now)/2)
	s.audit.Info("serving certificate issued", "hosts", append(slices.Clone(cert.Leaf.DNSNames), ips(cert)...), "serial", cert.Leaf.SerialNumber.Text(16), "issuer", issuer, "expires", cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	return nil
}

func ips(cert *tls.Certificate) []string {
	var out []string
	for _, ip := range cert.Leaf.IPAddresses {
		out = append(out, ip.String())
	}
	return out
}
