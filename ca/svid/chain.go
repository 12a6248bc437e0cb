package svid

import (
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// Bounds on what a source answers.
const (
	maxElements    = 16
	maxAnswer      = 256 << 10
	maxChainCerts  = 5
	maxAnswerRoots = 16
)

// parseChain splits an answer into the chain to present and the roots. The roots are the last element; every element,
// not only that one, may hold several certificates.
func parseChain(id spiffeid.ID, answer []string) (chain, roots []*x509.Certificate, err error) {
	if len(answer) == 0 {
		return nil, nil, fmt.Errorf("chain returned from CA is empty for: %s", id)
	}
	if len(answer) > maxElements {
		return nil, nil, fmt.Errorf("chain returned from CA has %d elements, more than %d", len(answer), maxElements)
	}
	var size int
	for _, text := range answer {
		size += len(text)
	}
	if size > maxAnswer {
		return nil, nil, fmt.Errorf("chain returned from CA has %d bytes, more than %d", size, maxAnswer)
	}
	last := len(answer) - 1
	for n, text := range answer[:last] {
		certs, err := mtls.ParsePEM([]byte(text), maxChainCerts)
		if err != nil {
			return nil, nil, fmt.Errorf("chain returned from CA: element %d: %w", n, err)
		}
		chain = append(chain, certs...)
	}
	if len(chain) == 0 {
		return nil, nil, errors.New("no root certificate present")
	}
	roots, err = mtls.ParsePEM([]byte(answer[last]), maxAnswerRoots)
	if err != nil {
		return nil, nil, fmt.Errorf("chain returned from CA: roots: %w", err)
	}
	return chain, roots, nil
}
