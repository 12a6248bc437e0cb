package kubeauth

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Caller is who a token was issued to.
type Caller struct {
	Node     string      // the node that the token names; empty when the API server is too old to write one
	Identity spiffeid.ID // of its service account
	Pod      string      // namespace/name of the pod that the token is bound to; empty for none
	PodUID   string
}

// Account is a service account.
type Account struct{ Namespace, Name string }

func (a Account) String() string { return a.Namespace + "/" + a.Name }

// DefaultTrusted are the accounts of the proxies: ours and Istio's.
func DefaultTrusted() []string { return []string{"warren-system/ztunnel", "istio-system/ztunnel"} }

// ParseAccounts reads a list of "namespace/name".
func ParseAccounts(list []string) ([]Account, error) {
	var out []Account
	for _, text := range list {
		namespace, name, ok := strings.Cut(strings.TrimSpace(text), "/")
		if !ok || len(validation.IsDNS1123Label(namespace)) > 0 || len(validation.IsDNS1123Subdomain(name)) > 0 {
			return nil, fmt.Errorf("%q is not a service account, such as warren-system/ztunnel", text)
		}
		if a := (Account{Namespace: namespace, Name: name}); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

// account reads the service account of an identity that this package made.
func account(id spiffeid.ID) (Account, bool) {
	part := strings.Split(id.Path(), "/")
	if len(part) != 5 || part[1] != "ns" || part[3] != "sa" {
		return Account{}, false
	}
	return Account{Namespace: part[2], Name: part[4]}, true
}
