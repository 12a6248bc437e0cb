package mtls_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// What peers may not present, a source may not hand us either.
func TestBadAnswersAreRefused(t *testing.T) {
	good := newPKI(t)
	want := id("/ns/app/sa/peer")
	for _, tt := range badCertificates() {
		if tt.name == "P-224" || tt.name == "the root itself" {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			key := newKey(t)
			if i, err := mtls.NewIdentity(want, key, tt.make(t, good, key), []*x509.Certificate{good.cert}, time.Now()); err == nil {
				t.Errorf("accepted: %v", i)
			}
		})
	}
	key := newKey(t)
	leaf := good.sign(t, leafTemplate(want.String()), key.Public())
	chain, roots := []*x509.Certificate{leaf}, []*x509.Certificate{good.cert}
	weak := weakKey(t)
	clientOnly := leafTemplate(want.String())
	clientOnly.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	tests := []struct {
		name         string
		id           spiffeid.ID
		key          crypto.Signer
		chain, roots []*x509.Certificate
		want         string
	}{
		{"another identity", id("/ns/app/sa/me"), key, chain, roots, "did not find expected SAN: spiffe://td.test/ns/app/sa/me"},
		{"no identity", spiffeid.ID{}, key, chain, roots, "no identity"},
		{"another key", want, newKey(t), chain, roots, "another key"},
		{"no key", want, nil, chain, roots, "no private key"},
		{"no roots", want, key, chain, nil, "no root certificate present"},
		{"a leaf as root", want, key, chain, chain, "not a CA"},
		{"too many roots", want, key, chain, bytesRepeat(good.cert, 65), "more than 64"},
		{"RSA of 1024 bits", want, weak, []*x509.Certificate{good.sign(t, leafTemplate(want.String()), weak.Public())}, roots, "RSA key of 1024 bits"},
		{"for clients only", want, key, []*x509.Certificate{good.sign(t, clientOnly, key.Public())}, roots, "not for server authentication"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := mtls.NewIdentity(tt.id, tt.key, tt.chain, tt.roots, time.Now())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func bytesRepeat(c *x509.Certificate, n int) []*x509.Certificate {
	out := make([]*x509.Certificate, n)
	for i := range out {
		out[i] = c
	}
	return out
}

func TestIntermediates(t *testing.T) {
	root := newPKI(t)
	middle := root.intermediate(t)
	key := newKey(t)
	leaf := middle.sign(t, leafTemplate(id("/ns/app/sa/a").String()), key.Public())
	i, err := mtls.NewIdentity(id("/ns/app/sa/a"), key, []*x509.Certificate{leaf, middle.cert}, []*x509.Certificate{root.cert}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b := root.identity(t, "/ns/app/sa/b")
	if r := shake(mtls.Client(i, []spiffeid.ID{b.ID()}), mtls.Server(always(b))); r.client != nil || r.server != nil {
		t.Errorf("%v, %v", r.client, r.server)
	}
}

// Meshes have intermediates with Istio's old CA's ID in them. Whose the leaf is, only the leaf says.
func TestIntermediateThatNamesAWorkload(t *testing.T) {
	root, key := newPKI(t), newKey(t)
	citadel := issuedBy(&x509.Certificate{KeyUsage: x509.KeyUsageCertSign, URIs: uris(id("/ns/istio-system/sa/citadel").String())})
	i, err := mtls.NewIdentity(id("/ns/app/sa/peer"), key, citadel(t, root, key), []*x509.Certificate{root.cert}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b := root.identity(t, "/ns/app/sa/b")
	if got, err := b.VerifyPeer(i.Chain(), x509.ExtKeyUsageClientAuth, time.Now()); err != nil || got != i.ID() {
		t.Errorf("%v, %v", got, err)
	}
}

func TestHowMuchLifeMustBeLeft(t *testing.T) {
	p := newPKI(t)
	now := time.Now().Truncate(time.Second)
	me := id("/ns/app/sa/a")
	tests := []struct {
		name                string
		notBefore, notAfter time.Duration // from now
		requested           time.Duration // from now; zero: unknown
		ok                  bool
	}{
		{"a day", -2 * time.Minute, 24 * time.Hour, 0, true},
		{"a day old", -24 * time.Hour, 11 * time.Second, 0, true},
		{"nearly over", -24 * time.Hour, 9 * time.Second, 0, false},
		{"ten seconds, fresh", -time.Second, 10 * time.Second, 0, true},
		{"ten seconds, old", -9 * time.Second, 2 * time.Second, 0, false},
		{"ten seconds, back-dated, age unknown", -2 * time.Minute, 9 * time.Second, 0, false},
		{"ten seconds, back-dated, just asked for", -2 * time.Minute, 9 * time.Second, -time.Second, true},
		{"ten seconds, back-dated, slow answer", -2 * time.Minute, 2 * time.Second, -8 * time.Second, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			key := newKey(t)
			tmpl := leafTemplate(me.String())
			tmpl.NotBefore, tmpl.NotAfter = now.Add(tt.notBefore), now.Add(tt.notAfter)
			chain, roots := []*x509.Certificate{p.sign(t, tmpl, key.Public())}, []*x509.Certificate{p.cert}
			var requested time.Time
			if tt.requested != 0 {
				requested = now.Add(tt.requested)
			}
			_, err := mtls.NewIssued(me, key, chain, roots, requested, now)
			if (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestTheKeyDoesNotShow(t *testing.T) {
	p := newPKI(t)
	key := newKey(t)
	leaf := p.sign(t, leafTemplate(id("/ns/app/sa/a").String()), key.Public())
	i, err := mtls.NewIdentity(id("/ns/app/sa/a"), key, []*x509.Certificate{leaf}, []*x509.Certificate{p.cert}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "identity", i)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "identity", i)
	text := log.String() + fmt.Sprintf("%v %+v %#v %s %x %d", i, i, i, i, i, i) + fmt.Sprintf("%+v", struct{ I *mtls.Identity }{i})
	for _, form := range []string{fmt.Sprint(raw), fmt.Sprintf("%x", raw), new(big.Int).SetBytes(raw).String(), "PrivateKey"} {
		if strings.Contains(text, form) {
			t.Errorf("%.40s… shows in %s", form, text)
		}
	}
	if !strings.HasPrefix(i.String(), "spiffe://td.test/ns/app/sa/a until ") {
		t.Errorf("String is %q", i)
	}
}

func TestAccessorsGiveCopies(t *testing.T) {
	i := newPKI(t).identity(t, "/ns/app/sa/a")
	i.Chain()[0] = nil
	i.Roots()[0] = nil
	if i.Chain()[0] == nil || i.Roots()[0] == nil {
		t.Error("the identity was changed from outside")
	}
}

func TestWithRoots(t *testing.T) {
	old, next := newPKI(t), newPKI(t)
	a, b := old.identity(t, "/ns/app/sa/a"), next.identity(t, "/ns/app/sa/b")
	both, err := mtls.NewRoots([]*x509.Certificate{old.cert, next.cert, old.cert})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(both.Certificates()); n != 2 {
		t.Errorf("%d roots, want 2", n)
	}
	if r := shake(mtls.Client(a, []spiffeid.ID{b.ID()}), mtls.Server(always(b))); r.client == nil {
		t.Fatal("strangers trust each other")
	}
	if r := shake(mtls.Client(a.WithRoots(both), []spiffeid.ID{b.ID()}), mtls.Server(always(b.WithRoots(both)))); r.client != nil || r.server != nil {
		t.Errorf("%v, %v", r.client, r.server)
	}
}

func TestParsePEM(t *testing.T) {
	p := newPKI(t)
	one := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw}))
	tests := []struct {
		name, text string
		n          int
		ok         bool
	}{
		{"empty", "", 0, true}, {"white space", "\n \n", 0, true}, {"one", one, 1, true},
		{"text around", "hello\n" + one + "bye\n" + one, 2, true}, {"too many", one + one + one, 0, false},
		{"no PEM", "hello", 0, false}, {"a key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0, false},
		{"no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0, false},
		{"a second one cut off", one + one[:len(one)/2], 0, false}, {"cut off in its first line", one + one[:len("-----BEGIN CERT")], 0, false},
		{"a second one damaged", one + strings.Replace(one, "MII", "M!I", 1), 0, false},
		{"a first one damaged", strings.Replace(one, "MII", "M!I", 1) + one, 0, false},
		{"a first one without its end", one[:strings.Index(one, "-----END")] + one, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := mtls.ParsePEM([]byte(tt.text), 2)
			if (err == nil) != tt.ok || len(got) != tt.n {
				t.Errorf("%d certificates, %v", len(got), err)
			}
		})
	}
}

// FuzzVerify holds what the verifier accepts to the rules, whatever parses as a certificate.
func FuzzVerify(f *testing.F) {
	p := newPKI(f)
	key := newKey(f)
	f.Add(p.sign(f, leafTemplate("spiffe://td.test/ns/app/sa/a"), key.Public()).Raw)
	f.Add(p.sign(f, leafTemplate("spiffe://td.test"), key.Public()).Raw)
	f.Add(p.cert.Raw)
	roots, err := mtls.NewRoots([]*x509.Certificate{p.cert})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		got, err := mtls.Verify([]*x509.Certificate{c}, roots, x509.ExtKeyUsageServerAuth, time.Now())
		if err != nil {
			if !got.IsZero() {
				t.Error("an identity beside an error")
			}
			return
		}
		if c.IsCA || len(c.URIs) != 1 || got.Path() == "" || c.CheckSignatureFrom(p.cert) != nil {
			t.Errorf("accepted %s", got)
		}
	})
}
