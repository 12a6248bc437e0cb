package mtls_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/warren-mesh/warren/ca/mtls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type result struct {
	client, server     error
	clientCS, serverCS tls.ConnectionState
}

// shake makes a handshake and has the server send one byte: with TLS 1.3 a client learns of the server's refusal only
// when it reads. It does so over TCP, since in an unbuffered pipe an alert and the rest of a flight block each other.
func shake(client, server *tls.Config) result {
	c, s := connect()
	var r result
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer s.Close()
		srv := tls.Server(s, server)
		if r.server = srv.Handshake(); r.server == nil {
			_, r.server = srv.Write([]byte{1})
		}
		r.serverCS = srv.ConnectionState()
	}()
	cli := tls.Client(c, client)
	if r.client = cli.Handshake(); r.client == nil {
		_, r.client = cli.Read(make([]byte, 1))
	}
	r.clientCS = cli.ConnectionState()
	c.Close()
	<-done
	return r
}

func connect() (client, server net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		panic(err)
	}
	if server, err = l.Accept(); err != nil {
		panic(err)
	}
	return client, server
}

func always(i *mtls.Identity) func(context.Context) (*mtls.Identity, error) {
	return func(context.Context) (*mtls.Identity, error) { return i, nil }
}

func TestHandshake(t *testing.T) {
	p := newPKI(t)
	a, b := p.identity(t, "/ns/app/sa/a"), p.identity(t, "/ns/app/sa/b")
	r := shake(mtls.Client(a, []spiffeid.ID{id("/ns/x/sa/y"), b.ID()}), mtls.Server(always(b)))
	if err := errors.Join(r.client, r.server); err != nil {
		t.Fatal(err)
	}
	for _, cs := range []tls.ConnectionState{r.clientCS, r.serverCS} {
		if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "h2" || cs.DidResume {
			t.Errorf("version %x, protocol %q, resumed %v", cs.Version, cs.NegotiatedProtocol, cs.DidResume)
		}
		if cs.CurveID != tls.X25519MLKEM768 {
			t.Errorf("key exchange %s", cs.CurveID)
		}
		if cs.CipherSuite != tls.TLS_AES_128_GCM_SHA256 && cs.CipherSuite != tls.TLS_AES_256_GCM_SHA384 {
			t.Logf("cipher suite %s: no AES instructions here?", tls.CipherSuiteName(cs.CipherSuite))
		}
	}
	if got, err := mtls.Peer(r.serverCS); err != nil || got != a.ID() {
		t.Errorf("server sees %s, %v", got, err)
	}
	if got, err := mtls.Peer(r.clientCS); err != nil || got != b.ID() {
		t.Errorf("client sees %s, %v", got, err)
	}
	if r.serverCS.ServerName != "" {
		t.Errorf("SNI %q was sent", r.serverCS.ServerName)
	}
	if _, err := mtls.Peer(tls.ConnectionState{}); err == nil {
		t.Error("a peer without a certificate has an identity")
	}
}

// A caller may clone a configuration, as stacks above crypto/tls do, and still be judged.
func TestClonedConfigurationsJudge(t *testing.T) {
	p := newPKI(t)
	a, b := p.identity(t, "/ns/app/sa/a"), p.identity(t, "/ns/app/sa/b")
	r := shake(mtls.Client(a, []spiffeid.ID{b.ID()}).Clone(), mtls.Server(always(b)).Clone())
	if err := errors.Join(r.client, r.server); err != nil {
		t.Error(err)
	}
	other := newPKI(t).identity(t, "/ns/app/sa/a")
	if r := shake(mtls.Client(other, []spiffeid.ID{b.ID()}).Clone(), mtls.Server(always(b)).Clone()); r.client == nil {
		t.Error("a clone accepts another root")
	}
	// Nor may a sessions cache that a caller adds make it resume.
	cfg := mtls.Client(a, []spiffeid.ID{b.ID()})
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	cfg.ServerName = "same.test"
	for range 2 {
		if r := shake(cfg, mtls.Server(always(b))); r.client != nil || r.clientCS.DidResume {
			t.Errorf("resumed %v, %v", r.clientCS.DidResume, r.client)
		}
	}
}

// badCertificate makes what a peer presents; good is the root that we trust.
type badCertificate struct {
	name string
	make func(t *testing.T, good *pki, key crypto.Signer) []*x509.Certificate
	want string // in our error
}

func leafWith(change func(*x509.Certificate)) func(*testing.T, *pki, crypto.Signer) []*x509.Certificate {
	return func(t *testing.T, good *pki, key crypto.Signer) []*x509.Certificate {
		tmpl := leafTemplate(id("/ns/app/sa/peer").String())
		change(tmpl)
		return []*x509.Certificate{good.sign(t, tmpl, key.Public())}
	}
}

func badCertificates() []badCertificate {
	peer := id("/ns/app/sa/peer").String()
	return []badCertificate{
		{"untrusted CA", func(t *testing.T, _ *pki, key crypto.Signer) []*x509.Certificate {
			return []*x509.Certificate{newPKI(t).sign(t, leafTemplate(peer), key.Public())}
		}, "unknown authority"},
		{"self-signed", func(t *testing.T, _ *pki, key crypto.Signer) []*x509.Certificate {
			return []*x509.Certificate{(&pki{key: key}).sign(t, leafTemplate(peer), key.Public())}
		}, "unknown authority"},
		{"wrong trust domain", leafWith(func(c *x509.Certificate) { c.URIs = uris("spiffe://other.test/ns/app/sa/peer") }), "peer did not present the expected"},
		{"expired", leafWith(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		}), "expired"},
		{"not valid yet", leafWith(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "not yet valid"},
		{"no SAN", leafWith(func(c *x509.Certificate) { c.URIs = nil }), "has no SPIFFE ID"},
		{"only a DNS name", leafWith(func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"peer.test"} }), "has no SPIFFE ID"},
		{"a URI of another scheme", leafWith(func(c *x509.Certificate) { c.URIs = uris("https://td.test/ns/app/sa/peer") }), "not a SPIFFE ID"},
		{"two SPIFFE IDs", leafWith(func(c *x509.Certificate) { c.URIs = uris(peer, peer+"2") }), "2 URIs"},
		{"a SPIFFE ID and another URI", leafWith(func(c *x509.Certificate) { c.URIs = uris(peer, "https://td.test") }), "2 URIs"},
		{"root path", leafWith(func(c *x509.Certificate) { c.URIs = uris("spiffe://td.test") }), "not a workload"},
		{"root path with slash", leafWith(func(c *x509.Certificate) { c.URIs = uris("spiffe://td.test/") }), "not a SPIFFE ID"},
		{"percent escape", leafWith(func(c *x509.Certificate) { c.URIs = uris("spiffe://td.test/ns/app/sa/%70eer") }), "not a SPIFFE ID"},
		{"port", leafWith(func(c *x509.Certificate) { c.URIs = uris("spiffe://td.test:8443/ns/app/sa/peer") }), "not a SPIFFE ID"},
		{"dot segment", leafWith(func(c *x509.Certificate) { c.URIs = uris("spiffe://td.test/ns/app/../sa/peer") }), "not a SPIFFE ID"},
		{"CA as leaf", leafWith(func(c *x509.Certificate) { c.IsCA = true }), "CA certificate"},
		{"the root itself", func(t *testing.T, good *pki, _ crypto.Signer) []*x509.Certificate {
			return []*x509.Certificate{good.cert}
		}, ""},
		{"no key usage", leafWith(func(c *x509.Certificate) { c.KeyUsage = 0 }), "digitalSignature"},
		{"key usage without digitalSignature", leafWith(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), "digitalSignature"},
		{"may sign certificates", leafWith(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }), "may sign"},
		{"key usage not critical", leafWith(func(c *x509.Certificate) {
			c.KeyUsage = 0
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Value: []byte{3, 2, 5, 0xa0}}}
		}), "critical"},
		{"for e-mail only", leafWith(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}
		}), "not for"},
		{"for an unknown purpose only", leafWith(func(c *x509.Certificate) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 3, 9999, 1}}
		}), "not for"},
		{"P-224", func(t *testing.T, good *pki, _ crypto.Signer) []*x509.Certificate { return nil }, ""},
		{"six certificates", func(t *testing.T, good *pki, key crypto.Signer) []*x509.Certificate {
			chain := []*x509.Certificate{good.sign(t, leafTemplate(peer), key.Public())}
			for range 5 {
				chain = append(chain, good.intermediate(t).cert)
			}
			return chain
		}, "chain of 6"},
		{"huge", leafWith(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 9999, 2}, Value: make([]byte, 40<<10)}}
		}), "bytes, more than"},
		{"unknown critical extension", leafWith(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 9999, 2}, Critical: true, Value: []byte{5, 0}}}
		}), "unhandled critical"},
		{"issued by a leaf", func(t *testing.T, good *pki, key crypto.Signer) []*x509.Certificate {
			k := newKey(t)
			middle := &pki{key: k, cert: good.sign(t, leafTemplate(id("/ns/app/sa/thief").String()), k.Public())}
			return []*x509.Certificate{middle.sign(t, leafTemplate(peer), key.Public()), middle.cert}
		}, "x509:"},
		{"issued by a CA for mail", func(t *testing.T, good *pki, key crypto.Signer) []*x509.Certificate {
			k := newKey(t)
			middle := &pki{key: k, cert: good.sign(t, &x509.Certificate{
				Subject: pkix.Name{CommonName: "mail"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection},
			}, k.Public())}
			return []*x509.Certificate{middle.sign(t, leafTemplate(peer), key.Public()), middle.cert}
		}, "incompatible key usage"},
		{"issued by a CA that may not sign", issuedBy(&x509.Certificate{KeyUsage: x509.KeyUsageCRLSign}), "x509:"},
		{"issued with a weak key", func(t *testing.T, good *pki, key crypto.Signer) []*x509.Certificate {
			k, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			middle := &pki{key: k, cert: good.sign(t, &x509.Certificate{
				Subject: pkix.Name{CommonName: "weak"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
			}, k.Public())}
			return []*x509.Certificate{middle.sign(t, leafTemplate(peer), key.Public()), middle.cert}
		}, "key is too weak"},
		{"no certificate", func(*testing.T, *pki, crypto.Signer) []*x509.Certificate { return nil }, ""},
	}
}

// issuedBy is a peer's certificate by an intermediate that is like tmpl.
func issuedBy(tmpl *x509.Certificate) func(t *testing.T, good *pki, key crypto.Signer) []*x509.Certificate {
	return func(t *testing.T, good *pki, key crypto.Signer) []*x509.Certificate {
		k := newKey(t)
		ca := *tmpl
		ca.Subject, ca.IsCA = pkix.Name{CommonName: "intermediate"}, true
		middle := &pki{key: k, cert: good.sign(t, &ca, k.Public())}
		return []*x509.Certificate{middle.sign(t, leafTemplate(id("/ns/app/sa/peer").String()), key.Public()), middle.cert}
	}
}

func TestBadCertificatesAreRefusedByBothSides(t *testing.T) {
	good := newPKI(t)
	self := good.identity(t, "/ns/app/sa/self")
	for _, tt := range badCertificates() {
		t.Run(tt.name, func(t *testing.T) {
			var key crypto.Signer = newKey(t)
			if tt.name == "P-224" {
				k, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
				if err != nil {
					t.Fatal(err)
				}
				leaf := good.sign(t, leafTemplate(id("/ns/app/sa/peer").String()), k.Public())
				// crypto/tls cannot sign with such a key; the verifier must not depend on that.
				roots, _ := mtls.NewRoots([]*x509.Certificate{good.cert})
				if _, err := mtls.Verify([]*x509.Certificate{leaf}, roots, x509.ExtKeyUsageClientAuth, time.Now()); err == nil || !strings.Contains(err.Error(), "P-224") {
					t.Errorf("got %v", err)
				}
				return
			}
			if tt.name == "the root itself" {
				key = good.key
			}
			chain := tt.make(t, good, key)
			r := shake(presenter(key, chain...), mtls.Server(always(self)))
			check(t, "server", r.server, tt.want, len(chain) > 0)
			if r.client == nil {
				t.Error("the client got data")
			}
			if len(chain) == 0 {
				return // a server without certificate is no TLS server
			}
			r = shake(mtls.Client(self, []spiffeid.ID{id("/ns/app/sa/peer")}), presenter(key, chain...))
			check(t, "client", r.client, tt.want, true)
		})
	}
}

func check(t *testing.T, side string, err error, want string, judged bool) {
	t.Helper()
	if err == nil {
		t.Fatalf("%s accepted it", side)
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %q does not say %q", side, err, want)
	}
	var v *mtls.VerifyError
	if judged && !errors.As(err, &v) {
		t.Errorf("%s: %T is not a VerifyError", side, err)
	}
}

func TestOneDirectionOnly(t *testing.T) {
	good := newPKI(t)
	self := good.identity(t, "/ns/app/sa/self")
	key := newKey(t)
	tmpl := leafTemplate(id("/ns/app/sa/peer").String())
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	leaf := good.sign(t, tmpl, key.Public())
	if r := shake(presenter(key, leaf), mtls.Server(always(self))); r.server != nil {
		t.Errorf("a client with clientAuth: %v", r.server)
	}
	r := shake(mtls.Client(self, []spiffeid.ID{id("/ns/app/sa/peer")}), presenter(key, leaf))
	check(t, "client", r.client, "not for server authentication", true)
}

func TestTheErrorsAreThoseOfZtunnel(t *testing.T) {
	p := newPKI(t)
	a, b := p.identity(t, "/ns/app/sa/a"), p.identity(t, "/ns/app/sa/b")
	r := shake(mtls.Client(a, []spiffeid.ID{id("/ns/app/sa/x"), id("/ns/app/sa/y")}), mtls.Server(always(b)))
	want := "identity verification error: peer did not present the expected SAN (spiffe://td.test/ns/app/sa/x, spiffe://td.test/ns/app/sa/y), got spiffe://td.test/ns/app/sa/b"
	if r.client == nil || r.client.Error() != want {
		t.Errorf("got  %v\nwant %s", r.client, want)
	}
	if r := shake(mtls.Client(a, nil), mtls.Server(always(b))); r.client == nil {
		t.Error("an empty list accepts somebody")
	}

	key := newKey(t)
	foreign := spiffeid.RequireFromString("spiffe://other.test/ns/app/sa/b")
	leaf := p.sign(t, leafTemplate(foreign.String()), key.Public())
	want = "identity verification error: peer did not present the expected trustdomain (td.test), got spiffe://other.test/ns/app/sa/b"
	if r := shake(presenter(key, leaf), mtls.Server(always(a))); r.server == nil || r.server.Error() != want {
		t.Errorf("server got %v", r.server)
	}
	// Our roots vouch for no other trust domain, even if xDS says to expect one.
	if r := shake(mtls.Client(a, []spiffeid.ID{foreign}), presenter(key, leaf)); r.client == nil || r.client.Error() != want {
		t.Errorf("client got %v", r.client)
	}
}

func TestProtocols(t *testing.T) {
	p := newPKI(t)
	a, b := p.identity(t, "/ns/app/sa/a"), p.identity(t, "/ns/app/sa/b")
	for _, tt := range []struct {
		offer []string
		ok    bool
	}{
		{nil, true}, {[]string{"h2"}, true}, {[]string{"http/1.1", "h2"}, true},
		{[]string{"http/1.1"}, false}, {[]string{"istio-peer-exchange"}, false},
	} {
		t.Run(fmt.Sprint(tt.offer), func(t *testing.T) {
			c := mtls.Client(a, []spiffeid.ID{b.ID()})
			c.NextProtos = tt.offer
			if r := shake(c, mtls.Server(always(b))); (r.server == nil) != tt.ok {
				t.Errorf("client's offer: %v", r.server)
			}
			key := newKey(t)
			s := presenter(key, p.sign(t, leafTemplate(b.ID().String()), key.Public()))
			s.NextProtos = tt.offer
			r := shake(mtls.Client(a, []spiffeid.ID{b.ID()}), s)
			if want := tt.ok || len(tt.offer) == 0; (r.client == nil) != want {
				t.Errorf("server's offer: %v", r.client)
			}
		})
	}
	old := mtls.Client(a, []spiffeid.ID{b.ID()})
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if r := shake(old, mtls.Server(always(b))); r.server == nil {
		t.Error("TLS 1.2 is accepted")
	}
}

func TestAnExpiredIdentityNeitherDialsNorAccepts(t *testing.T) {
	p := newPKI(t)
	key := newKey(t)
	tmpl := leafTemplate(id("/ns/app/sa/old").String())
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Second)
	leaf := p.sign(t, tmpl, key.Public())
	old, err := mtls.NewIdentity(id("/ns/app/sa/old"), key, []*x509.Certificate{leaf}, []*x509.Certificate{p.cert}, time.Now().Add(-30*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	young := p.identity(t, "/ns/app/sa/young")
	var expired *mtls.ExpiredError
	if r := shake(mtls.Client(old, []spiffeid.ID{young.ID()}), mtls.Server(always(young))); !errors.As(r.client, &expired) {
		t.Errorf("dialled: %v", r.client)
	}
	if r := shake(mtls.Client(young, []spiffeid.ID{old.ID()}), mtls.Server(always(old))); !errors.As(r.server, &expired) {
		t.Errorf("accepted: %v", r.server)
	}
}

func TestNoIdentity(t *testing.T) {
	p := newPKI(t)
	a := p.identity(t, "/ns/app/sa/a")
	gone := errors.New("the identity is no longer needed")
	r := shake(mtls.Client(a, []spiffeid.ID{a.ID()}), mtls.Server(func(context.Context) (*mtls.Identity, error) { return nil, gone }))
	if !errors.Is(r.server, gone) {
		t.Errorf("got %v", r.server)
	}
	if r := shake(mtls.Client(a, []spiffeid.ID{a.ID()}), mtls.Server(always(nil))); r.server == nil {
		t.Error("a server without identity accepts")
	}
	if r := shake(mtls.Client(nil, []spiffeid.ID{a.ID()}), mtls.Server(always(a))); r.client == nil {
		t.Error("a client without identity connects")
	}
}

// Rotation: the listener's configuration is made once, what it presents is asked for each time.
func TestRotationNeedsNoNewListener(t *testing.T) {
	p := newPKI(t)
	a := p.identity(t, "/ns/app/sa/a")
	var now *mtls.Identity
	cfg := mtls.Server(func(context.Context) (*mtls.Identity, error) { return now, nil })
	for range 3 {
		now = p.identity(t, "/ns/app/sa/b")
		r := shake(mtls.Client(a, []spiffeid.ID{now.ID()}), cfg)
		if r.client != nil || !r.clientCS.PeerCertificates[0].Equal(now.Chain()[0]) {
			t.Errorf("%v, or another certificate", r.client)
		}
	}
}

func BenchmarkClientConfig(b *testing.B) {
	p := newPKI(b)
	i := p.identity(b, "/ns/app/sa/a")
	want := []spiffeid.ID{i.ID()}
	for b.Loop() {
		mtls.Client(i, want)
	}
}

func BenchmarkServerConfig(b *testing.B) {
	p := newPKI(b)
	i := p.identity(b, "/ns/app/sa/a")
	cfg := mtls.Server(always(i))
	hello := &tls.ClientHelloInfo{SupportedProtos: []string{"h2"}}
	for b.Loop() {
		if _, err := cfg.GetConfigForClient(hello); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyPeer(b *testing.B) {
	p := newPKI(b)
	i := p.identity(b, "/ns/app/sa/a")
	chain := i.Chain()
	for b.Loop() {
		if _, err := i.VerifyPeer(chain, x509.ExtKeyUsageClientAuth, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHandshake(b *testing.B) {
	p := newPKI(b)
	x, y := p.identity(b, "/ns/app/sa/a"), p.identity(b, "/ns/app/sa/b")
	server := mtls.Server(always(y))
	for b.Loop() {
		if r := shake(mtls.Client(x, []spiffeid.ID{y.ID()}), server); r.client != nil {
			b.Fatal(r.client)
		}
	}
}

// Every tunnel is judged anew: a client that would like to go on with an earlier session gets a whole handshake, and no
// ticket for one.
func TestNothingIsResumed(t *testing.T) {
	p := newPKI(t)
	a, b := p.identity(t, "/ns/app/sa/a"), p.identity(t, "/ns/app/sa/b")
	key := newKey(t)
	client := presenter(key, p.sign(t, leafTemplate(a.ID().String()), key.Public()))
	client.ServerName, client.NextProtos = "b", []string{"h2"} // a cache is asked by name
	cache := &countingCache{ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	client.ClientSessionCache = cache
	server := mtls.Server(always(b))
	for range 2 {
		if r := shake(client, server); r.client != nil || r.server != nil || r.clientCS.DidResume || r.serverCS.DidResume {
			t.Errorf("client %v, server %v, resumed %v", r.client, r.server, r.clientCS.DidResume)
		}
	}
	if cache.puts > 0 {
		t.Errorf("the server gave out %d tickets", cache.puts)
	}
}

type countingCache struct {
	tls.ClientSessionCache
	puts int
}

func (c *countingCache) Put(key string, s *tls.ClientSessionState) {
	c.puts++
	c.ClientSessionCache.Put(key, s)
}

// A stack that does not know GetConfigForClient lets nobody in.
func TestServerWithoutItsCallbackRefuses(t *testing.T) {
	p := newPKI(t)
	a, b := p.identity(t, "/ns/app/sa/a"), p.identity(t, "/ns/app/sa/b")
	key := newKey(t)
	server := mtls.Server(always(b))
	server.GetConfigForClient = nil
	server.Certificates = presenter(key, p.sign(t, leafTemplate(b.ID().String()), key.Public())).Certificates
	if r := shake(mtls.Client(a, []spiffeid.ID{b.ID()}), server); r.server == nil {
		t.Error("the server let a client in without judging it")
	}
}
