package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const alpn = "h2"

// base holds what all configurations share.
func base() *tls.Config {
	p := inForce()
	return &tls.Config{
		MinVersion:             p.minVersion(),
		NextProtos:             []string{alpn},
		CurvePreferences:       p.curves(),
		SessionTicketsDisabled: true,
		Renegotiation:          tls.RenegotiateNever,
	}
}

// Client is the connecting side of HBONE: it presents self and accepts a server that is any one of expected. An empty
// list accepts nobody. The handshake fails with *VerifyError when the server is someone else or its certificate does
// not hold. It is cheap enough to be called for each connection, and the caller may change or clone what it gets.
func Client(self *Identity, expected []spiffeid.ID) *tls.Config {
	want := slices.Clone(expected)
	c := base()
	c.InsecureSkipVerify = true // VerifyConnection judges; with no ServerName no SNI is sent
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return self.present(time.Now())
	}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if self == nil {
			return errNoIdentity
		}
		return self.verifyServer(cs, want)
	}
	return c
}

// Server is the accepting side of HBONE. self is asked in each handshake for the identity to present, with the
// handshake's context; its error ends the handshake. Clients must present an SVID of that identity's trust domain.
// What it returns may be shared by any number of listeners and connections, and cloned.
func Server(self func(ctx context.Context) (*Identity, error)) *tls.Config {
	c := base()
	c.ClientAuth = tls.RequireAnyClientCert
	// Never used while GetConfigForClient is honoured; fails closed in a stack that would not.
	c.VerifyConnection = func(tls.ConnectionState) error { return errNoIdentity }
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		// crypto/tls lets a client that offers only http/1.1 in, for the sake of net/http.
		if p := hello.SupportedProtos; len(p) > 0 && !slices.Contains(p, alpn) {
			return nil, fmt.Errorf("mtls: client offers %q, only %q is spoken here", p, alpn)
		}
		i, err := self(hello.Context())
		if err != nil {
			return nil, err
		}
		if _, err := i.present(time.Now()); err != nil {
			return nil, err
		}
		return i.server, nil
	}
	return c
}

var errNoIdentity = errors.New("mtls: there is no identity to present")

// present gives the certificate out while it is valid.
func (i *Identity) present(now time.Time) (*tls.Certificate, error) {
	if i == nil {
		return nil, errNoIdentity
	}
	if i.Expired(now) {
		return nil, &ExpiredError{ID: i.id, NotAfter: i.NotAfter()}
	}
	return i.cert, nil
}

// ExpiredError says that our own certificate has ended and nothing has replaced it.
type ExpiredError struct {
	ID       spiffeid.ID
	NotAfter time.Time
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("mtls: the certificate of %s expired at %s; see why its renewal fails", e.ID, e.NotAfter.UTC().Format(time.RFC3339))
}

// serverConfig is built once for an identity and returned by every handshake.
func (i *Identity) serverConfig() *tls.Config {
	c := base()
	c.ClientAuth = tls.RequireAnyClientCert
	c.Certificates = []tls.Certificate{*i.cert}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := i.VerifyPeer(cs.PeerCertificates, x509.ExtKeyUsageClientAuth, time.Now())
		return err
	}
	return c
}

func (i *Identity) verifyServer(cs tls.ConnectionState, want []spiffeid.ID) error {
	got, err := i.VerifyPeer(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, time.Now())
	if err != nil {
		return err
	}
	if !slices.Contains(want, got) {
		return &VerifyError{Reason: &otherError{fmt.Sprintf("peer did not present the expected SAN (%s), got %s", join(want), got)}}
	}
	return nil
}
