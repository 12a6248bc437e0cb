package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/warren-mesh/warren/proxy/hbone"
)

// flag is the metrics' one-word reason why a connection went wrong.
type flag uint8

const (
	flagNone flag = iota
	flagDeny
	flagConnect
	flagTLS
	flagH2
	flagNetworkPolicy
	flagIdentity
	flagRevoked
	flagCount
)

func (f flag) String() string {
	return [...]string{"-", "DENY", "CONNECT", "TLS_FAILURE", "H2_HANDSHAKE_FAILURE", "NETWORK_POLICY", "IDENTITY_ERROR", "CERT_REVOKED"}[f]
}

// Reasons why we end a connection.
var (
	errPolicyChange = errors.New("connection closed due to policy change")
	errDrain        = errors.New("connection closed due to connection drain")
	errRecursive    = errors.New("attempted recursive call to ourselves")
)

// policyError is a refusal by a policy.
type policyError struct{ reason string }

func (e *policyError) Error() string {
	return "connection closed due to policy rejection: " + e.reason
}

// identityError says that a pod has no certificate to show.
type identityError struct{ err error }

func (e *identityError) Error() string { return "identity error: " + e.err.Error() }
func (e *identityError) Unwrap() error { return e.err }

// connectError says that the application could not be reached.
type connectError struct{ err error }

func (e *connectError) Error() string { return "connection failed: " + ioText(e.err) }
func (e *connectError) Unwrap() error { return e.err }

// upstreamError says that a destination outside the mesh could not be reached.
type upstreamError struct{ err error }

func (e *upstreamError) Error() string { return "io error: " + ioText(e.err) }
func (e *upstreamError) Unwrap() error { return e.err }

// ioText is an error of a dial in the words that ztunnel's logs have.
func ioText(err error) string {
	if isTimeout(err) {
		return "deadline has elapsed"
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err.Error()
	}
	return err.Error()
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// tunnelError is an error of the pool as its users have to read it.
func tunnelError(dst netip.AddrPort, err error) error {
	var connect *hbone.ConnectError
	var tlsErr *hbone.TLSError
	var identity *identityError
	switch {
	case errors.As(err, &identity):
		return identity
	case errors.As(err, &connect) && isTimeout(err), errors.Is(err, errUnanswered):
		return &blockedError{dst: dst, err: err}
	case errors.As(err, &connect):
		return &upstreamError{err: connect.Err}
	case errors.As(err, &tlsErr):
		return &wordedError{word: "tls handshake error: ", err: tlsErr, cause: tlsErr.Err}
	}
	return err
}

// blockedError is a peer's HBONE port that does not answer.
type blockedError struct {
	dst netip.AddrPort
	err error
}

func (e *blockedError) Error() string {
	return fmt.Sprintf("connection timed out, maybe a NetworkPolicy is blocking HBONE port %d: %s", e.dst.Port(), ioText(e.err))
}
func (e *blockedError) Unwrap() error { return e.err }

// wordedError has cause's text behind word, but is err.
type wordedError struct {
	word       string
	err, cause error
}

func (e *wordedError) Error() string { return e.word + e.cause.Error() }
func (e *wordedError) Unwrap() error { return e.err }

// flagOf infers the flag from the error that a connection ended with.
func flagOf(err error) flag {
	var policy *policyError
	var identity *identityError
	var blocked *blockedError
	var tlsErr *hbone.TLSError
	var reset *hbone.ResetError
	var lost *hbone.TunnelError
	switch {
	case err == nil || errors.Is(err, errDrain):
		return flagNone // ending with us is nobody's failure
	case errors.As(err, &policy) || errors.Is(err, errPolicyChange):
		return flagDeny
	case errors.Is(err, errRevoked):
		return flagRevoked
	case errors.As(err, &identity):
		return flagIdentity
	case errors.As(err, &blocked):
		return flagNetworkPolicy
	case errors.As(err, &tlsErr):
		return flagTLS
	case errors.As(err, &reset), errors.As(err, &lost):
		return flagH2
	}
	return flagConnect
}
