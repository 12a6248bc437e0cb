package record

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// hints say in words what the common alerts mean between mesh peers (RFC 8446 §6).
var hints = [...]struct{ alert, hint string }{
	{"unknown certificate authority", "it does not trust the CA that issued our certificate"},
	{"bad certificate", "it does not accept our certificate: wrong identity or trust domain, or not valid there"},
	{"expired certificate", "it takes our certificate for expired: compare the clocks and the rotation of both nodes"},
	{"certificate required", "it wants a client certificate and got none"},
	{"handshake failure", "no TLS version, cipher suite or curve in common"},
	{"no application protocol", "it does not speak HTTP/2"},
	{"protocol version not supported", "no TLS version in common"},
}

// clarify turns an error of crypto/tls into one that says who complained about what.
func clarify(err error) error {
	if err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		text := strings.TrimPrefix(op.Err.Error(), "tls: ")
		for _, h := range hints {
			if text == h.alert {
				return fmt.Errorf("peer sent alert %q: %s: %w", text, h.hint, err)
			}
		}
		return fmt.Errorf("peer sent alert %q: %w", text, err)
	}
	var hdr tls.RecordHeaderError
	if errors.As(err, &hdr) {
		return fmt.Errorf("peer does not speak TLS: %w", err)
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return fmt.Errorf("peer's certificate comes from a CA that is not trusted here: %w", err)
	}
	return err
}
