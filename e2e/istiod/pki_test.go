//go:build istiod

package istiod

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// pki is a CA that is plugged into a control plane: a root and, below it, issuers that
// follow one another. All of them may sign lists of what they revoke, which istiod's own
// root may not, and istiod gives out the lists of a plugged-in CA alone.
type pki struct {
	dir     string
	root    *issuer
	issuers []*issuer // the last one issues
}

type issuer struct {
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	revoked []x509.RevocationListEntry
}

const crlFile = "ca-crl.pem" // Istio's name for it, in the Secret and in the ConfigMap

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{dir: t.TempDir(), root: newIssuer(t, "root", nil)}
	for _, d := range []string{p.cacerts(), filepath.Dir(p.lists())} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.replace(t)
	p.mount(t, p.cacerts(), p.secret(t))
	return p
}

// cacerts is where the control plane has the Secret of that name.
func (p *pki) cacerts() string { return filepath.Join(p.dir, "cacerts") }

// lists is where proxies have the ConfigMap istio-ca-crl.
func (p *pki) lists() string { return filepath.Join(p.dir, "crl", crlFile) }

func (p *pki) issuer() *issuer { return p.issuers[len(p.issuers)-1] }

// replace puts another issuer in the place of the last one.
func (p *pki) replace(t *testing.T) {
	p.issuers = append(p.issuers, newIssuer(t, fmt.Sprintf("issuer %d", len(p.issuers)+1), p.root))
}

func newIssuer(t *testing.T, name string, by *issuer) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{Organization: []string{"cluster.local"}, CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour * 365), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{cert: cert, key: key}
}

// revoke takes certificates of an issuer back. Nobody knows before it is published.
func (i *issuer) revoke(serials ...*big.Int) {
	for _, s := range serials {
		i.revoked = append(i.revoked, x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now()})
	}
}

func (i *issuer) list(t *testing.T) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour), RevokedCertificateEntries: i.revoked,
	}, i.cert, i.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// secret is what is in cacerts. Istiod demands a list of every CA in the chain.
func (p *pki) secret(t *testing.T) map[string][]byte {
	t.Helper()
	key, err := x509.MarshalECPrivateKey(p.issuer().key)
	if err != nil {
		t.Fatal(err)
	}
	lists := p.root.list(t)
	for _, i := range p.issuers {
		lists = append(lists, i.list(t)...)
	}
	asPEM := func(i *issuer) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw}) }
	return map[string][]byte{
		"ca-key.pem": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}), "ca-cert.pem": asPEM(p.issuer()),
		"cert-chain.pem": asPEM(p.issuer()), "root-cert.pem": asPEM(p.root), crlFile: lists,
	}
}

// mount puts files into a folder as kubelet does for a Secret or a ConfigMap: all of them
// change at one moment, when a link moves.
func (p *pki) mount(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	fresh, err := os.MkdirTemp(dir, "..data-")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(fresh, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	next := filepath.Join(dir, "..next")
	if err := errors.Join(os.Symlink(filepath.Base(fresh), next), os.Rename(next, filepath.Join(dir, "..data"))); err != nil {
		t.Fatal(err)
	}
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
	}
}

// plugIn has a world's programs look there.
func (w *world) plugIn(o *onehost.Options) {
	if w.pki == nil {
		return
	}
	o.Env = append(o.Env, "CRL_PATH="+w.pki.lists())
	if i, ok := o.ControlPlane.(*istiod); ok {
		i.env = append(i.env, "ROOT_CA_DIR="+w.pki.cacerts())
		return
	}
	o.Args = append(o.Args, "--ca-dir", w.pki.cacerts(), "--ca-overlap", "0")
}

// publish gives the control plane what the CA is now, and the proxies the lists: those
// that istiod has taken for them, which it does together with the rest.
func (w *world) publish(t *testing.T) {
	t.Helper()
	secret := w.pki.secret(t)
	w.pki.mount(t, w.pki.cacerts(), secret)
	lists := secret[crlFile]
	if i, ok := w.Opts.ControlPlane.(*istiod); ok {
		eventually(t, "istiod gives out the lists", func() error {
			cm, err := i.kube.CoreV1().ConfigMaps(rootNamespace).Get(t.Context(), "istio-ca-crl", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if got := cm.Data[crlFile]; got != string(lists) {
				return fmt.Errorf("%d bytes, not the %d of now", len(got), len(lists))
			}
			return nil
		})
	}
	w.pki.mount(t, filepath.Dir(w.pki.lists()), map[string][]byte{crlFile: lists})
}
