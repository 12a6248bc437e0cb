package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ToAgent is the client of an agent that speaks for workloads (SPIFFE Broker API): it presents self, which is asked in
// each handshake, and takes a server of self's trust domain whose identity accept takes.
func ToAgent(self func(context.Context) (*Identity, error), accept func(spiffeid.ID) error) *tls.Config {
	c := base()
	c.InsecureSkipVerify = true // VerifyConnection judges
	c.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		i, err := self(info.Context())
		if err != nil {
			return nil, err
		}
		return i.present(time.Now())
	}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		// By the identity of this moment: the handshake has just asked for it.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		i, err := self(ctx)
		if err != nil {
			return err
		}
		id, err := i.VerifyPeer(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, time.Now())
		if err != nil {
			return err
		}
		if err := accept(id); err != nil {
			return &VerifyError{Reason: err}
		}
		return nil
	}
	return c
}
