package svid

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/warren-mesh/warren/internal/netns"
)

// Pod is whom a certificate is for: the node agent's word, never the pod's own.
type Pod struct {
	UID, Namespace, Name, ServiceAccount string
	Netns                                netns.ID // zero where there is none
}

// Watcher is a certificate source that makes the keys itself and streams what a pod is entitled to (SPIFFE's Broker and
// Workload API, SPIRE's Delegated Identity API, files).
type Watcher interface {
	// Watch calls emit with each message about pod, in order, until ctx ends or the source says no more, and returns why
	// it ended. It returns soon after ctx ends, and does not call emit afterwards. id is what the manager will look for;
	// sources that can be asked for it may narrow their messages to it. An error may be a *RetryAfterError, a
	// *PermanentError, a *WithdrawnError or an *OutlivedError.
	Watch(ctx context.Context, pod Pod, id spiffeid.ID, emit func(Update)) error
}

// Update is all that a source gives a pod at a moment: what an earlier one had and this one lacks is withdrawn.
type Update struct {
	SVIDs []SVID
	// Federated are the bundles of foreign trust domains whose workloads the pod may accept.
	Federated map[spiffeid.TrustDomain][]*x509.Certificate
	// Refused are bundles that came and could not be read, by the name of their trust domain.
	Refused map[string]error
	Proof   Proof
}

// Proof is how the pod was attested, for dumps. The zero value says nothing.
type Proof struct {
	PID       int    // of the process that stood for the pod
	Container string // its container
	At        time.Time
}

// SVID is one of them as it came, unchecked.
type SVID struct {
	ID    spiffeid.ID
	Key   crypto.Signer
	Chain []*x509.Certificate // leaf first
	Roots []*x509.Certificate // of ID's trust domain
}

// WithdrawnError says that the pod has no right to what it had: the certificate in use is dropped at once, and its
// connections with it. Sources return it for a denial, never for an outage.
type WithdrawnError struct{ Err error }

func (e *WithdrawnError) Error() string { return e.Err.Error() }

// Unwrap gives the source's own error.
func (e *WithdrawnError) Unwrap() error { return e.Err }

// Denied sorts the error of a SPIFFE API by its gRPC code (Workload API §5, §6.1; Broker API §4.8): a denial takes back what
// was given, a mistake of ours will not go away by itself, everything else is an outage.
func Denied(err error) error {
	switch status.Code(err) {
	case codes.PermissionDenied:
		return &WithdrawnError{Err: err}
	case codes.InvalidArgument, codes.Unimplemented:
		return &PermanentError{Err: err}
	default:
		return err
	}
}

// ErrProcessEnded is why a stream has ended that was for one process of the pod: it has. Another one may stand for the
// pod; what is in use stays so for a moment.
var ErrProcessEnded = errors.New("the process that stood for the pod has ended")

// OutlivedError is why a stream has ended that was for one process of the pod, which lives: the source is away. What it gave
// stays in use, but only while that process lives, since nobody has attested another. Whoever gets it calls Wait once.
type OutlivedError struct {
	Err error
	// Wait lasts until the process has ended, and returns nil then, or until ctx has. It lets go of the process.
	Wait func(ctx context.Context) error
}

func (e *OutlivedError) Error() string { return e.Err.Error() }

// Unwrap gives the source's own error.
func (e *OutlivedError) Unwrap() error { return e.Err }

// ErrNotEntitled is why a pod has no certificate although its source answers: what it was given does not include the
// identity.
var ErrNotEntitled = errors.New("the source gives the pod other identities or none")
