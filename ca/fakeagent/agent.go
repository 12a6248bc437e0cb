// Package fakeagent is a SPIFFE agent in memory, for tests: it serves the Workload API, the Broker API and SPIRE's
// Delegated Identity API on Unix sockets, gives whatever it was told to whoever asks, and can be made to behave as
// badly as real agents have been seen to. It attests nobody.
//
// Kind: test.
package fakeagent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Agent holds what is given to whom. All methods may be called while it serves.
type Agent struct {
	TD spiffeid.TrustDomain
	// Before, if set, is called with the reference of each new stream ("pod:UID", "pid:N", "selectors:…", "self") and
	// its error is the answer; it may wait. Set it before first use.
	Before func(ctx context.Context, ref string) error
	// Change, if set, may spoil an SVID before it is sent. Set it before first use.
	Change func(ref string, s *SVID)

	mu        sync.Mutex
	roots     []*authority // the last one signs
	given     map[string][]spiffeid.ID
	issued    map[spiffeid.ID]*SVID
	federated map[spiffeid.TrustDomain][]*x509.Certificate
	ttl       time.Duration
	changed   chan struct{}
	streams   int
	most      int
}

// SVID is one as it is sent.
type SVID struct {
	ID    spiffeid.ID
	Chain []*x509.Certificate
	Key   []byte // PKCS #8
	Roots []*x509.Certificate
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes an agent of a trust domain with a root of its own. Certificates last ttl.
func New(td spiffeid.TrustDomain, ttl time.Duration) (*Agent, error) {
	root, err := newAuthority(td)
	if err != nil {
		return nil, err
	}
	return &Agent{
		TD: td, ttl: ttl, roots: []*authority{root}, given: map[string][]spiffeid.ID{}, issued: map[spiffeid.ID]*SVID{},
		federated: map[spiffeid.TrustDomain][]*x509.Certificate{}, changed: make(chan struct{}),
	}, nil
}

func newAuthority(td spiffeid.TrustDomain) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{td.Name()}}, URIs: []*url.URL{td.ID().URL()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true,
		SubjectKeyId: []byte(rand.Text()),
	}
	cert, err := sign(tmpl, tmpl, &key.PublicKey, key)
	return &authority{cert, key}, err
}

func sign(tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return nil, err
	}
	tmpl.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Give says all identities that a reference has from now on; open streams are told.
func (a *Agent) Give(ref string, ids ...spiffeid.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.given[ref] = ids
	a.tellLocked()
}

// Rotate makes a new key and certificate for an identity.
func (a *Agent) Rotate(id spiffeid.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.issued, id)
	a.tellLocked()
}

// AddRoot adds a root, which signs from then on what is new.
func (a *Agent) AddRoot() error {
	root, err := newAuthority(a.TD)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roots = append(a.roots, root)
	a.tellLocked()
	return nil
}

// DropRoot removes the oldest root and all that it signed.
func (a *Agent) DropRoot() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roots = a.roots[1:]
	clear(a.issued)
	a.tellLocked()
}

// Revoke makes a revocation list, in DER, of certificates that the newest root signed.
func (a *Agent) Revoke(certs ...*x509.Certificate) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	by := a.roots[len(a.roots)-1]
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, c := range certs {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	return x509.CreateRevocationList(rand.Reader, list, by.cert, by.key)
}

// Federate has everybody federate with td; without roots, no longer.
func (a *Agent) Federate(td spiffeid.TrustDomain, roots ...*x509.Certificate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.federated, td)
	if len(roots) > 0 {
		a.federated[td] = roots
	}
	a.tellLocked()
}

// Roots is the current bundle.
func (a *Agent) Roots() []*x509.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rootsLocked()
}

func (a *Agent) rootsLocked() (certs []*x509.Certificate) {
	for _, r := range a.roots {
		certs = append(certs, r.cert)
	}
	return certs
}

// MostAtOnce is how many streams have been waiting for their first message together.
func (a *Agent) MostAtOnce() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.most
}

func (a *Agent) tellLocked() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// Spoil sets Change while the agent serves; open streams are told.
func (a *Agent) Spoil(change func(ref string, s *SVID)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.Change = change
	a.tellLocked()
}

// Issue makes or repeats the certificate of an identity.
func (a *Agent) Issue(id spiffeid.ID) (*SVID, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.issueLocked(id)
}

func (a *Agent) issueLocked(id spiffeid.ID) (*SVID, error) {
	if s := a.issued[id]; s != nil {
		return s, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	by := a.roots[len(a.roots)-1]
	cert, err := sign(&x509.Certificate{
		Subject: pkix.Name{Organization: []string{"fake agent"}}, URIs: []*url.URL{id.URL()},
		NotBefore: time.Now().Add(-10 * time.Second), NotAfter: time.Now().Add(a.ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}, by.cert, &key.PublicKey, by.key)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	s := &SVID{ID: id, Chain: []*x509.Certificate{cert}, Key: der}
	a.issued[id] = s
	return s, nil
}

// state is a whole message for a reference.
type state struct {
	svids     []SVID
	federated map[spiffeid.TrustDomain][]*x509.Certificate
}

func (a *Agent) state(ref string) (state, <-chan struct{}, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := state{federated: maps.Clone(a.federated)}
	for _, id := range a.given[ref] {
		s, err := a.issueLocked(id)
		if err != nil {
			return st, nil, err
		}
		one := *s
		one.Roots = a.rootsLocked()
		if a.Change != nil {
			a.Change(ref, &one)
		}
		st.svids = append(st.svids, one)
	}
	return st, a.changed, nil
}

// stream sends the state of ref now and at each change until the caller goes.
func (a *Agent) stream(ctx context.Context, ref string, send func(state) error) error {
	if err := a.before(ctx, ref); err != nil {
		return err
	}
	for {
		st, changed, err := a.state(ref)
		if err != nil {
			return err
		}
		if err := send(st); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil // as the real one, which looks like an end of its own
		}
	}
}

func (a *Agent) before(ctx context.Context, ref string) error {
	a.mu.Lock()
	a.streams++
	a.most = max(a.most, a.streams)
	a.mu.Unlock()
	defer func() { a.mu.Lock(); a.streams--; a.mu.Unlock() }()
	if a.Before == nil {
		return nil
	}
	return a.Before(ctx, ref)
}

// raw joins certificates as the APIs do.
func raw(certs []*x509.Certificate) (der []byte) {
	for _, c := range certs {
		der = append(der, c.Raw...)
	}
	return der
}

func rawByName(bundles map[spiffeid.TrustDomain][]*x509.Certificate) map[string][]byte {
	out := make(map[string][]byte, len(bundles))
	for td, certs := range bundles {
		out[td.ID().String()] = raw(certs)
	}
	return out
}

var errHeader = errors.New("security header missing from request")

func refOf(kind string, values ...any) string {
	return fmt.Sprint(append([]any{kind + ":"}, values...)...)
}

func names(bundles map[spiffeid.TrustDomain][]*x509.Certificate) (out []string) {
	for _, td := range slices.SortedFunc(maps.Keys(bundles), spiffeid.TrustDomain.Compare) {
		out = append(out, td.ID().String())
	}
	return out
}
