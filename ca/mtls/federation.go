package mtls

import (
	"crypto/x509"
	"fmt"
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxFederated bounds the foreign trust domains of one identity.
const maxFederated = 64

// Federation is what one identity accepts of other trust domains: for each its own roots, which vouch for no other. It
// belongs to the identity, not to the node: what one workload was given must not widen what another accepts.
type Federation map[spiffeid.TrustDomain]*Roots

// NewFederation reads the bundles of foreign trust domains. An empty bundle is left out: everything of that trust
// domain has been revoked, and nobody of it is accepted. So is one that cannot be used, which is nobody else's fault:
// refused says why. Beyond 64 trust domains the first by name count.
func NewFederation(bundles map[spiffeid.TrustDomain][]*x509.Certificate) (f Federation, refused map[spiffeid.TrustDomain]error) {
	if len(bundles) == 0 {
		return nil, nil
	}
	f, refused = Federation{}, map[spiffeid.TrustDomain]error{}
	for _, td := range slices.SortedFunc(maps.Keys(bundles), spiffeid.TrustDomain.Compare) {
		switch r, err := NewRoots(bundles[td]); {
		case len(bundles[td]) == 0:
		case err != nil:
			refused[td] = err
		case len(f) == maxFederated:
			refused[td] = fmt.Errorf("it is one of %d, more than %d", len(bundles), maxFederated)
		default:
			f[td] = r
		}
	}
	return f, refused
}

// WithFederation is the same identity accepting peers of f's trust domains as well.
func (i *Identity) WithFederation(f Federation) *Identity {
	n := *i
	n.federated = f
	n.server = n.serverConfig()
	return &n
}

// Federated lists the foreign trust domains whose workloads this identity accepts, with their roots. The caller owns
// the map.
func (i *Identity) Federated() map[spiffeid.TrustDomain][]*x509.Certificate {
	out := make(map[spiffeid.TrustDomain][]*x509.Certificate, len(i.federated))
	for td, r := range i.federated {
		out[td] = r.Certificates()
	}
	return out
}

// rootsFor picks the roots that may vouch for a chain by the trust domain that its leaf claims. A claim that leads
// nowhere is judged by our own roots, so that the error says first what is wrong with the certificate.
func (i *Identity) rootsFor(chain []*x509.Certificate) *Roots {
	if len(i.federated) == 0 || len(chain) == 0 {
		return i.roots
	}
	id, err := leafID(chain[0])
	if err != nil || id.TrustDomain() == i.id.TrustDomain() {
		return i.roots
	}
	if r := i.federated[id.TrustDomain()]; r != nil {
		return r
	}
	return i.roots
}
