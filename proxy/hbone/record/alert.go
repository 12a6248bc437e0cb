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

// Alerts (RFC 8446 §6).
const (
	levelWarning = 1
	levelFatal   = 2

	alertCloseNotify       = 0
	alertUnexpectedMessage = 10
	alertBadRecordMAC      = 20
	alertRecordOverflow    = 22
	alertIllegalParameter  = 47
	alertDecodeError       = 50
	alertProtocolVersion   = 70
	alertUserCanceled      = 90
)

// violation is why we refuse what the peer sent, and the alert that tells it.
type violation struct {
	alert tls.AlertError
	text  string
}

func (v *violation) Error() string {
	return fmt.Sprintf("%s (alert %q)", v.text, strings.TrimPrefix(v.alert.Error(), "tls: "))
}

// What a peer can do wrong after its handshake.
var (
	errVersion        = &violation{alertProtocolVersion, "record of an unknown version"}
	errOuterType      = &violation{alertUnexpectedMessage, "unprotected record after the handshake"}
	errTooLong        = &violation{alertRecordOverflow, "record that is too long"}
	errMAC            = &violation{alertBadRecordMAC, "record that was not sealed with the connection's key"}
	errNoType         = &violation{alertUnexpectedMessage, "record without a content type"}
	errInnerType      = &violation{alertUnexpectedMessage, "record of an unknown type"}
	errInterleaved    = &violation{alertUnexpectedMessage, "record in the middle of a handshake message"}
	errUseless        = &violation{alertUnexpectedMessage, "too many records without data"}
	errEmptyMessage   = &violation{alertUnexpectedMessage, "empty handshake record"}
	errMessage        = &violation{alertUnexpectedMessage, "handshake message after the handshake"}
	errTicket         = &violation{alertDecodeError, "malformed session ticket"}
	errKeyUpdateSize  = &violation{alertDecodeError, "malformed key update"}
	errKeyUpdateValue = &violation{alertIllegalParameter, "key update with an unknown request"}
	errUpdates        = &violation{alertUnexpectedMessage, "too many key updates for the data they protect"}
	errKeyBoundary    = &violation{alertUnexpectedMessage, "key update that is not at the end of its record"}
	errAlertSize      = &violation{alertUnexpectedMessage, "malformed alert"}
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
