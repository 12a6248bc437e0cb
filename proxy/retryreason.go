package proxy

import (
	"crypto/tls"
	"errors"
	"net/http"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/sockopt"
)

// Reasons to leave an endpoint for another one, as metrics have them.
const (
	leftRefused     = "refused"     // nobody listens there
	leftUnreachable = "unreachable" // the network says so
	leftTimeout     = "timeout"     // it did not answer in time
	leftUnavailable = "unavailable" // its proxy could not reach the application
	leftTLS         = "tls"         // no handshake came about
	leftIdentity    = "identity"    // somebody else is at its address
	leftLost        = "lost"        // the tunnel ended before the CONNECT was answered
)

var leftReasons = []string{leftRefused, leftUnreachable, leftTimeout, leftUnavailable, leftTLS, leftIdentity, leftLost}

// leftBecause says why a connection that an endpoint did not accept may be taken
// to another one; empty: it may not. Whatever happened before the acceptance, no
// byte of the application has been read, so that nothing can be lost or doubled:
// what is asked here is whether it was this endpoint's fault.
//
// Not retried are a policy's refusal (401, 403), which is an answer and not an
// outage, and which one must not go around by asking everybody; a peer's alert
// about our certificate, for the same reason; what a peer says of the request
// (400); and what is wrong with ourselves.
//
// Somebody else at the endpoint's address is a reason to go on: when pods change
// quickly, addresses pass on before the control plane knows. The other endpoint has
// to prove who it is all the same.
func leftBecause(err error) string {
	var (
		near     *neighbourError
		identity *identityError
		status   *hbone.StatusError
		alert    tls.AlertError
		verify   *mtls.VerifyError
		tlsErr   *hbone.TLSError
		reset    *hbone.ResetError
		lost     *hbone.TunnelError
		behind   *behindError
	)
	switch {
	case errors.As(err, &behind):
		// The gateway has chosen who is there, and chooses anew each time. Who that may be is
		// known by the service's names alone: somebody else is not one whose address has passed on.
		if reason := leftBecause(behind.err); reason != leftIdentity {
			return reason
		}
		return ""
	case errors.As(err, &near):
		return near.reason
	case errors.As(err, &identity), errors.Is(err, hbone.ErrBusy), errors.Is(err, errFull), errors.Is(err, errDrain):
		return ""
	case errors.As(err, &status):
		switch status.Code {
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return leftUnavailable
		}
		return ""
	case errors.As(err, &alert) && aboutUs(alert):
		return ""
	case errors.As(err, &verify):
		return leftIdentity
	case errors.Is(err, errUnanswered), errors.Is(err, errSilent), errors.Is(err, hbone.ErrTimeout), isTimeout(err):
		return leftTimeout
	case errors.As(err, &tlsErr):
		return leftTLS
	case errors.As(err, &reset), errors.As(err, &lost):
		return leftLost
	}
	return string(sockopt.FaultOf(err))
}

// heardBy is for whom an endpoint is to rest after err: for everybody, or for pods like this
// one alone, whom the network may keep from it, as by a NetworkPolicy.
func (p *pod) heardBy(err error, reason string) account {
	switch {
	case reason == leftUnreachable, reason == leftTimeout && !errors.Is(err, errSilent) && !errors.Is(err, hbone.ErrTimeout):
		return p.account()
	}
	return everybody // it has answered, or been reached, and is what it is
}

// neighbourError is what would have ended a handshake with the destination, where there is
// none because the connection stays on the node: the fault of that endpoint, not ours.
type neighbourError struct {
	reason string // to leave it
	err    error
}

func (e *neighbourError) Error() string { return "the destination, on this node: " + e.err.Error() }
func (e *neighbourError) Unwrap() error { return e.err }

// behindError is of a destination that a network's gateway has chosen: it is not
// that gateway's fault.
type behindError struct{ err error }

func (e *behindError) Error() string { return e.err.Error() }
func (e *behindError) Unwrap() error { return e.err }

// aboutUs says whether an alert refuses the certificate that we have shown
// (RFC 8446 §6.2).
func aboutUs(a tls.AlertError) bool {
	switch a {
	case 42, 43, 44, 45, 46, 48, 49, 116: // bad, unsupported, revoked, expired, unknown, unknown CA, access denied, required
		return true
	}
	return false
}
