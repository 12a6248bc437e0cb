package mtls_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
)

// revoke makes a list, signed by p, of certificates' serials.
func (p *pki) revoke(t testing.TB, certs ...*x509.Certificate) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: time.Now().Add(-time.Hour)}
	for _, c := range certs {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func asPEM(ders ...[]byte) (text []byte) {
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return text
}

func TestRevocation(t *testing.T) {
	root := newListPKI(t, nil)
	forger := newListPKI(t, root) // of the same name, with another key
	self, peer, other := root.identity(t, "/ns/a/sa/self"), root.identity(t, "/ns/a/sa/peer"), root.identity(t, "/ns/a/sa/other")
	tests := map[string]struct {
		text    []byte
		revoked bool
	}{
		"nothing":                {nil, false},
		"the peer":               {asPEM(root.revoke(t, peer.Chain()[0])), true},
		"in DER":                 {root.revoke(t, peer.Chain()[0]), true},
		"another":                {asPEM(root.revoke(t, other.Chain()[0])), false},
		"by somebody else":       {asPEM(forger.revoke(t, peer.Chain()[0])), false},
		"two lists":              {asPEM(forger.revoke(t, peer.Chain()[0]), root.revoke(t, other.Chain()[0], peer.Chain()[0])), true},
		"a list that is overdue": {asPEM(root.revoke(t, peer.Chain()[0])), true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var r mtls.Revocations
			i := self.WithRevocations(&r)
			if _, err := i.VerifyPeer(peer.Chain(), x509.ExtKeyUsageClientAuth, time.Now()); err != nil {
				t.Fatalf("before: %v", err)
			}
			if _, err := r.Load(tt.text); err != nil {
				t.Fatal(err)
			}
			_, err := i.VerifyPeer(peer.Chain(), x509.ExtKeyUsageClientAuth, time.Now())
			if errors.Is(err, mtls.ErrRevoked) != tt.revoked || err == nil == tt.revoked {
				t.Errorf("%v, want revoked %v", err, tt.revoked)
			}
			if changed, err := r.Load(tt.text); changed || err != nil {
				t.Errorf("the same again: changed %v, %v", changed, err)
			}
			// An emptied file takes everything back.
			if _, err := r.Load(nil); err != nil || r.Len() != 0 {
				t.Errorf("%d revoked, %v", r.Len(), err)
			}
			if _, err := i.VerifyPeer(peer.Chain(), x509.ExtKeyUsageClientAuth, time.Now()); err != nil {
				t.Errorf("after: %v", err)
			}
		})
	}
}

// A root without cRLSign, as istiod makes itself, is heard, and named.
func TestRevocationWithoutTheRight(t *testing.T) {
	root := newListPKI(t, nil)
	self, peer := root.identity(t, "/ns/a/sa/self"), root.identity(t, "/ns/a/sa/peer")
	list := asPEM(root.revoke(t, peer.Chain()[0]))
	var r mtls.Revocations
	refused := func(i *mtls.Identity) bool {
		_, err := i.WithRevocations(&r).VerifyPeer(peer.Chain(), x509.ExtKeyUsageClientAuth, time.Now())
		return errors.Is(err, mtls.ErrRevoked)
	}
	if _, err := r.Load(list); err != nil {
		t.Fatal(err)
	}
	if !refused(self) || r.Unentitled() != "" {
		t.Errorf("of a root with the right: refused %v, named %q", refused(self), r.Unentitled())
	}
	// The same key and name without the right.
	bare := *root
	bare.cert = root.sign(t, &x509.Certificate{
		Subject: root.cert.Subject, NotBefore: time.Now().Add(-48 * time.Hour), IsCA: true, SubjectKeyId: []byte{1}, KeyUsage: x509.KeyUsageCertSign,
	}, root.key.Public())
	r = mtls.Revocations{}
	if _, err := r.Load(list); err != nil {
		t.Fatal(err)
	}
	if got := refused(bare.identity(t, "/ns/a/sa/self")); !got || r.Unentitled() != root.cert.Subject.String() {
		t.Errorf("of a root without it: refused %v, named %q", got, r.Unentitled())
	}
	if _, err := r.Load(nil); err != nil || r.Unentitled() != "" {
		t.Errorf("named without a list: %q, %v", r.Unentitled(), err)
	}
}

func TestRevocationBadInput(t *testing.T) {
	root := newListPKI(t, nil)
	peer := root.identity(t, "/ns/a/sa/peer")
	var r mtls.Revocations
	if _, err := r.Load(asPEM(root.revoke(t, peer.Chain()[0]))); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"junk":                   "junk",
		"no block":               "-----BEGIN X509 CRL-----\n!",
		"certificate":            string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.cert.Raw})),
		"short":                  string(asPEM(root.revoke(t)[:40])),
		"too many":               strings.Repeat(string(asPEM(root.revoke(t))), 65),
		"a second list cut off":  string(asPEM(root.revoke(t), root.revoke(t, peer.Chain()[0])))[:len(asPEM(root.revoke(t)))+100],
		"a second list, damaged": string(asPEM(root.revoke(t))) + strings.Replace(string(asPEM(root.revoke(t, peer.Chain()[0]))), "MI", "M!", 1),
		"a first list, damaged":  strings.Replace(string(asPEM(root.revoke(t, peer.Chain()[0]))), "MI", "M!", 1) + string(asPEM(root.revoke(t))),
	} {
		if changed, err := r.Load([]byte(text)); err == nil || changed {
			t.Errorf("%s: changed %v, %v", name, changed, err)
		}
	}
	if r.Len() != 1 {
		t.Errorf("%d revoked after bad input, want the one of before", r.Len())
	}
}

// newListPKI is a root that may sign lists; like another it has the same name and a key of its own.
func newListPKI(t testing.TB, like *pki) *pki {
	t.Helper()
	p := &pki{key: newKey(t)}
	subject := pkix.Name{Organization: []string{td}, CommonName: "lists"}
	if like != nil {
		subject = like.cert.Subject
	}
	p.cert = p.sign(t, &x509.Certificate{
		Subject: subject, NotBefore: time.Now().Add(-48 * time.Hour), IsCA: true, SubjectKeyId: []byte{1},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, p.key.Public())
	return p
}
