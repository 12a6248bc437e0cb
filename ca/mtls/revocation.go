package mtls

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"sync/atomic"
)

// Bounds on a file of revocation lists.
const (
	maxLists     = 64
	maxListBytes = 16 << 20
)

// ErrRevoked is of a chain with a certificate in it that its issuer has revoked.
var ErrRevoked = errors.New("certificate revoked")

// Revocations are the certificates that their issuers have revoked (RFC 5280 §5), shared by all identities of a process
// and replaced as a whole. A list counts only for the issuer that signed it. What no list speaks of is not revoked, and a
// list whose next update is overdue still counts: it can be missing revocations, and dropping it would lose them all.
//
// The zero value revokes nothing.
type Revocations struct {
	lists atomic.Pointer[revoked]
}

// revoked is one set of lists, by the issuer's name in DER.
type revoked struct {
	text     []byte
	byIssuer map[string][]*list
	count    int
	// unentitled is a name of an issuer whose list counts although its certificate does not let it sign lists.
	unentitled atomic.Pointer[string]
}

type list struct {
	crl     *x509.RevocationList
	serials map[string]struct{}

	mu     sync.Mutex
	signer map[string]signature // by public key
}

// signature is what is known of a key and a list.
type signature int

const (
	others     signature = iota // somebody else's, for all that is known
	good                        // the key's
	unentitled                  // the key's, whose certificate says that it signs no lists
)

// Load replaces all lists by those in text, which is PEM of any number or one list in DER; an empty text has none. It
// reports whether that changed anything. After an error everything is as before.
func (r *Revocations) Load(text []byte) (changed bool, err error) {
	old := r.lists.Load()
	if old != nil && bytes.Equal(old.text, text) || old == nil && len(bytes.TrimSpace(text)) == 0 {
		return false, nil
	}
	next, err := parseLists(text)
	if err != nil {
		return false, err
	}
	r.lists.Store(next)
	return true, nil
}

// Len is the number of revoked certificates.
func (r *Revocations) Len() int {
	if r == nil {
		return 0
	}
	if l := r.lists.Load(); l != nil {
		return l.count
	}
	return 0
}

func parseLists(text []byte) (*revoked, error) {
	if len(text) > maxListBytes {
		return nil, fmt.Errorf("revocation lists of %d bytes, more than %d", len(text), maxListBytes)
	}
	out := &revoked{text: bytes.Clone(text), byIssuer: map[string][]*list{}}
	if len(bytes.TrimSpace(text)) == 0 {
		return out, nil
	}
	blocks, err := listBlocks(text)
	if err != nil {
		return nil, err
	}
	for n, der := range blocks {
		crl, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("revocation list %d: %w", n, err)
		}
		l := &list{crl: crl, serials: make(map[string]struct{}, len(crl.RevokedCertificateEntries)), signer: map[string]signature{}}
		for _, e := range crl.RevokedCertificateEntries {
			l.serials[serialKey(e.SerialNumber)] = struct{}{}
		}
		out.count += len(l.serials)
		out.byIssuer[string(crl.RawIssuer)] = append(out.byIssuer[string(crl.RawIssuer)], l)
	}
	return out, nil
}

func listBlocks(text []byte) (blocks [][]byte, err error) {
	if !bytes.Contains(text, []byte("-----BEGIN")) {
		return [][]byte{text}, nil
	}
	for rest := text; ; {
		var b *pem.Block
		if b, rest, err = nextBlock(rest); err != nil {
			return nil, err
		}
		if b == nil {
			break
		}
		if b.Type != "X509 CRL" {
			return nil, fmt.Errorf("PEM block %q is not a revocation list", b.Type)
		}
		if len(blocks) == maxLists {
			return nil, fmt.Errorf("more than %d revocation lists", maxLists)
		}
		blocks = append(blocks, b.Bytes)
	}
	return blocks, nil
}

func serialKey(n *big.Int) string { return string(n.Bytes()) }

// check returns an error if a certificate of a verified path, which ends in a root, was revoked by the next.
func (r *Revocations) check(path []*x509.Certificate) error {
	if r == nil {
		return nil
	}
	all := r.lists.Load()
	if all == nil || all.count == 0 {
		return nil
	}
	for n, c := range path[:len(path)-1] {
		for _, l := range all.byIssuer[string(c.RawIssuer)] {
			if _, ok := l.serials[serialKey(c.SerialNumber)]; !ok {
				continue
			}
			by := l.signedBy(path[n+1])
			if by == others {
				continue
			}
			if by == unentitled {
				name := c.Issuer.String()
				all.unentitled.Store(&name)
			}
			return fmt.Errorf("%w: serial %s of issuer %q", ErrRevoked, c.SerialNumber.Text(16), c.Issuer)
		}
	}
	return nil
}

// Unentitled names an issuer that has revoked somebody whom it met although its certificate has no cRLSign; empty for none.
// Such a list counts: whoever has the CA's key has spoken, and to let in whom he has revoked would be the worse mistake. But
// other proxies may see it otherwise.
func (r *Revocations) Unentitled() string {
	if all := r.lists.Load(); all != nil {
		if name := all.unentitled.Load(); name != nil {
			return *name
		}
	}
	return ""
}

// signedBy checks the list's signature once for each key.
func (l *list) signedBy(issuer *x509.Certificate) signature {
	key := string(issuer.RawSubjectPublicKeyInfo)
	l.mu.Lock()
	defer l.mu.Unlock()
	by, known := l.signer[key]
	if !known && len(l.signer) < maxLists {
		switch {
		case issuer.CheckSignature(l.crl.SignatureAlgorithm, l.crl.RawTBSRevocationList, l.crl.Signature) != nil:
		case l.crl.CheckSignatureFrom(issuer) == nil:
			by = good
		default:
			by = unentitled
		}
		l.signer[key] = by
	}
	return by
}
