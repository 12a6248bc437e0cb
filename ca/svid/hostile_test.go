package svid_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/svid"
)

// liar is a CA whose certificates are as a test wants them.
type liar struct {
	root *x509.Certificate
	key  *ecdsa.PrivateKey

	mu     sync.Mutex
	change func(c *x509.Certificate, pub *any)
	stall  bool
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newLiar(t testing.TB) *liar {
	t.Helper()
	l := &liar{key: newKey(t)}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"liar"}}, NotBefore: time.Now().Add(-1000 * time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{td.ID().URL()},
	}
	var err error
	if l.root, err = sign(tmpl, tmpl, &l.key.PublicKey, l.key); err != nil {
		t.Fatal(err)
	}
	return l
}

func sign(tmpl, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func (l *liar) lie(change func(c *x509.Certificate, pub *any)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.change = change
}

// leaf makes a certificate for pub, as honest or not as the liar is now.
func (l *liar) leaf(id spiffeid.ID, pub any) (*x509.Certificate, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{
		SerialNumber: serial, URIs: []*url.URL{id.URL()}, NotBefore: time.Now().Add(-2 * time.Minute), NotAfter: time.Now().Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if l.change != nil {
		l.change(c, &pub)
	}
	return sign(c, l.root, pub, l.key)
}

// Sign implements svid.Signer.
func (l *liar) Sign(ctx context.Context, id spiffeid.ID, csr []byte, _ time.Duration) ([]string, error) {
	l.mu.Lock()
	stall := l.stall
	l.mu.Unlock()
	if stall {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	block, _ := pem.Decode(csr)
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	c, err := l.leaf(id, req.PublicKey)
	if err != nil {
		return nil, err
	}
	text := func(c *x509.Certificate) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return []string{text(c), text(l.root)}, nil
}

// Watch implements svid.Watcher: a new certificate every two minutes.
func (l *liar) Watch(ctx context.Context, _ svid.Pod, id spiffeid.ID, emit func(svid.Update)) error {
	for {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		c, err := l.leaf(id, &key.PublicKey)
		if err != nil {
			return err
		}
		emit(svid.Update{SVIDs: []svid.SVID{{ID: id, Key: key, Chain: []*x509.Certificate{c}, Roots: []*x509.Certificate{l.root}}}})
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Minute):
		}
	}
}

// lies are what a certificate must not be.
func lies(t testing.TB) map[string]func(c *x509.Certificate, pub *any) {
	other := newKey(t)
	return map[string]func(c *x509.Certificate, pub *any){
		"another identity":     func(c *x509.Certificate, _ *any) { c.URIs = []*url.URL{sa("other").URL()} },
		"two identities":       func(c *x509.Certificate, _ *any) { c.URIs = append(c.URIs, sa("other").URL()) },
		"no identity":          func(c *x509.Certificate, _ *any) { c.URIs = nil },
		"another trust domain": func(c *x509.Certificate, _ *any) { c.URIs[0].Host = "else.test" },
		"expired": func(c *x509.Certificate, _ *any) {
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Second)
		},
		"about to expire": func(c *x509.Certificate, _ *any) { c.NotAfter = time.Now().Add(2 * time.Second) },
		"of the future": func(c *x509.Certificate, _ *any) {
			c.NotBefore, c.NotAfter = time.Now().Add(20*time.Minute), time.Now().Add(40*time.Minute)
		},
		"another key":     func(_ *x509.Certificate, pub *any) { *pub = &other.PublicKey },
		"a CA":            func(c *x509.Certificate, _ *any) { c.IsCA = true },
		"may sign":        func(c *x509.Certificate, _ *any) { c.KeyUsage |= x509.KeyUsageCertSign },
		"not for servers": func(c *x509.Certificate, _ *any) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} },
	}
}

// Whatever a source sends in place of a good certificate is not used: neither as the first one, nor instead of a good
// one, which stays in use until its end. When the source mends its ways, so does everything.
func TestLyingSources(t *testing.T) {
	for kind, config := range map[string]func(l *liar) svid.Config{
		"signer":  func(l *liar) svid.Config { return svid.Config{Signer: l} },
		"watcher": func(l *liar) svid.Config { return svid.Config{Watcher: l} },
	} {
		for name, lie := range lies(t) {
			if kind == "signer" && name == "about to expire" {
				continue // what was signed for our request is short-lived, not old
			}
			t.Run(kind+": "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l, r := newLiar(t), &recorder{}
					cfg := config(l)
					cfg.Observer, cfg.Wait = r, 5*time.Second
					m, stop := run(t, cfg)
					defer stop()
					l.lie(lie)
					first := m.Acquire(pod(0), sa("a"))
					if i, err := first.Identity(t.Context()); err == nil {
						t.Fatalf("used as the first one: %v", i)
					}
					l.lie(nil)
					time.Sleep(3 * time.Minute)
					mustIdentity(t, first)
					l.lie(lie)
					good := mustIdentity(t, first)
					time.Sleep(time.Until(good.NotAfter()) - time.Second) // renewals are tried, and refused
					if got := first.Current(); got == nil || !got.Chain()[0].NotAfter.Equal(good.NotAfter()) {
						t.Errorf("in use is %v, was %v", got, good)
					}
					time.Sleep(2 * time.Second)
					if got := first.Current(); got != nil {
						t.Errorf("in use after its end: %v", got)
					}
					l.lie(nil)
					time.Sleep(3 * time.Minute)
					mustIdentity(t, first)
					r.mu.Lock()
					defer r.mu.Unlock()
					if name == "expired" && !slices.Contains(r.events, "noted served_expired") || name == "of the future" && !slices.Contains(r.events, "noted served_early") {
						t.Error("it is not counted what the source sends")
					}
				})
			})
		}
	}
}

// A certificate that is back-dated far more than usual is good, and is not renewed at once again and again.
func TestBackDated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, r := newLiar(t), &recorder{}
		l.lie(func(c *x509.Certificate, _ *any) { c.NotBefore = time.Now().Add(-100 * time.Hour) })
		m, stop := run(t, svid.Config{Signer: l, Observer: r})
		defer stop()
		mustIdentity(t, m.Acquire(pod(0), sa("a")))
		time.Sleep(time.Hour)
		r.mu.Lock()
		defer r.mu.Unlock()
		if n := len(r.events) / 2; n > 20 {
			t.Errorf("%d requests in an hour for certificates of ten minutes", n)
		}
	})
}

// A CA that takes calls and never answers holds places for as long as a call may take, and the rest goes on.
func TestAStallingCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLiar(t)
		m, stop := run(t, svid.Config{Signer: l, CallTimeout: 10 * time.Second, Wait: 2 * time.Second})
		defer stop()
		first := m.Acquire(pod(0), sa("a"))
		good := mustIdentity(t, first)
		l.mu.Lock()
		l.stall = true
		l.mu.Unlock()
		for n := range 20 {
			start := time.Now()
			if _, err := m.Acquire(pod(n+1), sa("b")).Identity(t.Context()); err == nil {
				t.Fatal("an answer of a CA that gives none")
			}
			if waited := time.Since(start); waited > 3*time.Second {
				t.Fatalf("a connection waited %s", waited)
			}
		}
		if first.Current() != good {
			t.Error("what is in use was touched")
		}
		l.mu.Lock()
		l.stall = false
		l.mu.Unlock()
		time.Sleep(time.Minute)
		mustIdentity(t, m.Acquire(pod(5), sa("b")))
	})
}
