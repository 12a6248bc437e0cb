package mtls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// minRemaining bounds how close to its end a certificate may be when it arrives; short-lived ones use a quarter of
// their lifetime instead, so that SVIDs of ten seconds are usable.
const minRemaining = 10 * time.Second

// Identity is one X.509-SVID with its private key and the roots that its holder trusts.
//
// It is immutable and safe for concurrent use. The key can be used (by the configurations of this package) but not
// read: no method, format verb or log handler shows it.
type Identity struct {
	id         spiffeid.ID
	cert       *tls.Certificate // PrivateKey lives here; Leaf is set so that a handshake parses nothing
	chain      []*x509.Certificate
	roots      *Roots
	federated  Federation
	revoked    *Revocations
	receivedAt time.Time
	server     *tls.Config
}

// NewIdentity checks what a certificate source answered and binds it to its key.
//
// chain is the leaf first, then intermediates; roots is the trust bundle of id's trust domain; receivedAt is when the
// answer came (keep its monotonic reading). The answer is refused when it is not a strict X.509-SVID for exactly id,
// does not belong to key, does not chain to roots, is not valid yet or not any more, or has less than the smaller of
// ten seconds and a quarter of its lifetime left.
func NewIdentity(id spiffeid.ID, key crypto.Signer, chain, roots []*x509.Certificate, receivedAt time.Time) (*Identity, error) {
	return NewIssued(id, key, chain, roots, time.Time{}, receivedAt)
}

// NewIssued is NewIdentity for a certificate that is known not to be older than requestedAt, because it was signed for
// a key made then. Its lifetime is counted from there: CAs back-date NotBefore (Istio by two minutes), and a
// certificate of ten seconds would otherwise look like one of two minutes at its end.
func NewIssued(id spiffeid.ID, key crypto.Signer, chain, roots []*x509.Certificate, requestedAt, receivedAt time.Time) (*Identity, error) {
	r, err := NewRoots(roots)
	if err != nil {
		return nil, fmt.Errorf("mtls: certificate for %s: %w", id, err)
	}
	i, err := newIdentity(id, key, chain, r, requestedAt, receivedAt)
	if err != nil {
		return nil, fmt.Errorf("mtls: certificate for %s: %w", id, err)
	}
	return i, nil
}

func newIdentity(id spiffeid.ID, key crypto.Signer, chain []*x509.Certificate, roots *Roots, requestedAt, receivedAt time.Time) (*Identity, error) {
	if id.IsZero() {
		return nil, errors.New("no identity was asked for")
	}
	if err := checkKeyPair(key, chain); err != nil {
		return nil, err
	}
	// Our own certificate is shown in both directions; each must hold.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		got, err := verify(chain, roots, nil, usage, receivedAt)
		if err != nil {
			return nil, err
		}
		if got != id {
			return nil, fmt.Errorf("did not find expected SAN: %s (the certificate is for %s)", id, got)
		}
	}
	leaf := chain[0]
	if err := checkRemaining(leaf, requestedAt, receivedAt); err != nil {
		return nil, err
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	i := &Identity{id: id, cert: cert, chain: slices.Clone(chain), roots: roots, receivedAt: receivedAt}
	i.server = i.serverConfig()
	return i, nil
}

func checkKeyPair(key crypto.Signer, chain []*x509.Certificate) error {
	if key == nil {
		return errors.New("no private key")
	}
	if len(chain) == 0 {
		return errors.New("the certificate chain is empty")
	}
	var same bool
	switch pub := key.Public().(type) {
	case *ecdsa.PublicKey:
		same = pub.Equal(chain[0].PublicKey)
	case *rsa.PublicKey:
		same = pub.Equal(chain[0].PublicKey)
	case ed25519.PublicKey:
		same = pub.Equal(chain[0].PublicKey)
	default:
		return fmt.Errorf("private key of type %T is not supported", key)
	}
	if !same {
		return errors.New("the certificate was issued for another key")
	}
	return nil
}

func checkRemaining(leaf *x509.Certificate, requestedAt, receivedAt time.Time) error {
	from := leaf.NotBefore
	if requestedAt.After(from) {
		from = requestedAt
	}
	floor := min(minRemaining, leaf.NotAfter.Sub(from)/4)
	if left := leaf.NotAfter.Sub(receivedAt); left < floor {
		return fmt.Errorf("only %s of its lifetime is left, at least %s is needed", left.Round(time.Millisecond), floor)
	}
	return nil
}

// WithRoots is the same certificate and key under other roots. Its own chain is not verified again: during a change of
// roots the leaf may still hang from one that peers must no longer use.
func (i *Identity) WithRoots(roots *Roots) *Identity {
	n := *i
	n.roots = roots
	n.server = n.serverConfig()
	return &n
}

// WithRevocations is the same identity refusing peers whose certificates are revoked, from the next handshake on as r
// is then.
func (i *Identity) WithRevocations(r *Revocations) *Identity {
	n := *i
	n.revoked = r
	n.server = n.serverConfig()
	return &n
}

// ID is the SPIFFE ID in the certificate.
func (i *Identity) ID() spiffeid.ID { return i.id }

// Chain is the leaf and its intermediates, as sent to peers. The caller owns the slice, not the certificates.
func (i *Identity) Chain() []*x509.Certificate { return slices.Clone(i.chain) }

// Roots are the certificates that peers of this identity must chain to.
func (i *Identity) Roots() []*x509.Certificate { return i.roots.Certificates() }

// RootsFor are those by which VerifyPeer judges a chain: of the trust domain that its leaf claims.
func (i *Identity) RootsFor(chain []*x509.Certificate) []*x509.Certificate {
	return i.rootsFor(chain).Certificates()
}

// NotBefore is when the certificate begins to be valid; CAs back-date it.
func (i *Identity) NotBefore() time.Time { return i.chain[0].NotBefore }

// NotAfter is when it ends.
func (i *Identity) NotAfter() time.Time { return i.chain[0].NotAfter }

// ReceivedAt is when the certificate source answered.
func (i *Identity) ReceivedAt() time.Time { return i.receivedAt }

// Expired reports whether the certificate has ended at now. An expired identity neither dials nor accepts.
func (i *Identity) Expired(now time.Time) bool { return now.After(i.chain[0].NotAfter) }

// VerifyPeer judges a peer's chain by this identity's roots and trust domain; it is what a handshake does, for
// re-judging connections that live. usage is what the peer uses its certificate for: ExtKeyUsageClientAuth for one
// that connected to us.
func (i *Identity) VerifyPeer(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (spiffeid.ID, error) {
	roots := i.rootsFor(chain)
	peer, err := verify(chain, roots, i.revoked, usage, now)
	if err != nil {
		return spiffeid.ID{}, &VerifyError{Reason: err}
	}
	// Roots vouch for the trust domain that they are of, and for no other.
	if td := i.id.TrustDomain(); peer.TrustDomain() != td && i.federated[peer.TrustDomain()] != roots {
		return spiffeid.ID{}, &VerifyError{Reason: &otherError{fmt.Sprintf("peer did not present the expected trustdomain (%s), got %s", td.Name(), peer)}}
	}
	return peer, nil
}

// String is the SPIFFE ID and the certificate's end.
func (i *Identity) String() string {
	if i == nil {
		return "no identity"
	}
	return fmt.Sprintf("%s until %s", i.id, i.NotAfter().UTC().Format(time.RFC3339))
}

// Format answers every verb with String, so that %+v does not walk into the private key.
func (i *Identity) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, i.String()) }

// LogValue keeps structured logs from reflecting over the key.
func (i *Identity) LogValue() slog.Value { return slog.StringValue(i.String()) }
