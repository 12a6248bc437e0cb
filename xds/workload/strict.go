package workload

import "strings"

// Names of the policies that strict mTLS comes down to.
const (
	staticStrict  = "istio_converted_static_strict"
	convertedPeer = "converted_peer_authentication_"
)

// StrictOnly says of a policy's name whether the policy can be about nothing but mTLS, so
// that it has nothing to say of clients that have proved an identity. For the sake of the
// underscores no object of a cluster can have such a name: a control plane makes these
// policies, of PeerAuthentications.
//
// Istio's control plane also names some that it never sends, since by which rules it
// chooses the name for a workload and by which it makes the policy is not the same. All
// that is known then is that mTLS may be strict.
func StrictOnly(policy string) bool {
	_, name, ok := strings.Cut(policy, "/")
	return ok && (name == staticStrict || strings.HasPrefix(name, convertedPeer))
}
