package workload

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// NewIdentity is spiffe://<trust domain>/ns/<namespace>/sa/<service account>;
// an empty trust domain or service account takes its default.
func NewIdentity(trustDomain, namespace, serviceAccount string) (spiffeid.ID, error) {
	if trustDomain == "" {
		trustDomain = DefaultTrustDomain
	}
	if serviceAccount == "" {
		serviceAccount = DefaultServiceAccount
	}
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("workload: trust domain %q: %w", trustDomain, err)
	}
	id, err := spiffeid.FromSegments(td, "ns", namespace, "sa", serviceAccount)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("workload: identity of namespace %q, service account %q: %w", namespace, serviceAccount, err)
	}
	return id, nil
}

// SplitIdentity returns namespace and service account of an ID of the form
// …/ns/<namespace>/sa/<service account>; ok is false for any other.
func SplitIdentity(id spiffeid.ID) (namespace, serviceAccount string, ok bool) {
	rest, ok := strings.CutPrefix(id.Path(), "/ns/")
	if !ok {
		return "", "", false
	}
	namespace, rest, ok = strings.Cut(rest, "/")
	if !ok {
		return "", "", false
	}
	serviceAccount, ok = strings.CutPrefix(rest, "sa/")
	if !ok || serviceAccount == "" || strings.Contains(serviceAccount, "/") {
		return "", "", false
	}
	return namespace, serviceAccount, true
}
