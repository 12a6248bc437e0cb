package proxy

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/proxy/track"
)

// Peers that are refused are counted by why.
func TestWhyPeersAreRefused(t *testing.T) {
	for why, reason := range map[string]error{
		"revoked": fmt.Errorf("%w: serial 1", mtls.ErrRevoked), "unknown_authority": x509.UnknownAuthorityError{},
		"expired_or_early": x509.CertificateInvalidError{Reason: x509.Expired}, "identity": fmt.Errorf("%w", mtls.ErrOther),
		"malformed": errors.New("two URIs"),
	} {
		m, _ := testMetrics()
		m.svids.refuse(track.Inbound, fmt.Errorf("handshake: %w", &mtls.VerifyError{Reason: reason}))
		m.svids.refuse(track.Inbound, errors.New("connection reset"))
		text, _ := scrape(t, m)
		for _, line := range linesWith(text, "warren_peers_refused_total") {
			if one := strings.Contains(line, `"`+why+`"`); one != strings.HasSuffix(line, " 1") || !one && !strings.HasSuffix(line, " 0") {
				t.Errorf("%s: %s", why, line)
			}
		}
	}
}
