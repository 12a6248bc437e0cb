package svid

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// Lease is one holder's right to use one identity. It is safe for concurrent use. Whoever acquired it releases it.
type Lease struct {
	m    *Manager
	e    atomic.Pointer[entry] // nil if the lease was dead from the start; changed with Manager.mu
	pod  Pod
	id   spiffeid.ID
	done chan struct{}
	err  error // why done is closed; written before
}

// ID is the identity leased.
func (l *Lease) ID() spiffeid.ID { return l.id }

// Done is closed when the lease has ended: released, its holder forgotten, or the manager stopped. Connections made
// with it must then close.
func (l *Lease) Done() <-chan struct{} { return l.done }

// Err is why the lease has ended (ErrNotNeeded, ErrStopped or ErrTooMany), nil while it lasts.
func (l *Lease) Err() error {
	select {
	case <-l.done:
		return l.err
	default:
		return nil
	}
}

// Release gives the lease back; again and after Forget it does nothing.
func (l *Lease) Release() {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.m.releaseLocked(l)
}

// Identity gives a certificate that is valid now, waiting for one if need be: until ctx ends, but no longer than
// Config.Wait. Waiting callers have the highest priority, and bring a retry forward that was put off. The error wraps
// the source's last one. An expired certificate is never given.
func (l *Lease) Identity(ctx context.Context) (*mtls.Identity, error) {
	if i := l.peek(); i != nil {
		return i, nil
	}
	if err := l.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.m.cfg.Wait)
	defer cancel()
	attempts := l.attempts()
	for {
		i, changed, err := l.m.demand(l, attempts)
		if i != nil || err != nil {
			return i, err
		}
		select {
		case <-changed:
		case <-l.done:
			return nil, l.err
		case <-ctx.Done():
			return nil, l.timeout(ctx.Err())
		}
	}
}

// Current is the certificate that is held now, nil if there is none that is valid. It does not wait.
func (l *Lease) Current() *mtls.Identity { return l.peek() }

// Held is Current also after its end: whom it trusts is known until another takes its place.
func (l *Lease) Held() *mtls.Identity {
	e := l.e.Load()
	if e == nil || l.Err() != nil {
		return nil
	}
	return e.current.Load()
}

// peek is Identity without waiting: no lock, no allocation.
func (l *Lease) peek() *mtls.Identity {
	i := l.Held()
	if i == nil || i.Expired(l.m.wall()) {
		return nil
	}
	return i
}

func (l *Lease) attempts() int {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return l.e.Load().attempts
}

func (l *Lease) timeout(cause error) error {
	l.m.mu.Lock()
	last := l.e.Load().lastErr
	l.m.mu.Unlock()
	if last != nil {
		return fmt.Errorf("svid: no certificate for %s in time: %w: %w", l.id, last, cause)
	}
	return fmt.Errorf("svid: no certificate for %s in time: %w", l.id, cause)
}

// demand gives the certificate, or raises the request for it and says which channel closes at its end. A permanent
// error is returned if a request ended with it since the caller came, when attempts had been made.
func (m *Manager) demand(l *Lease, attempts int) (*mtls.Identity, <-chan struct{}, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := l.Err(); err != nil {
		return nil, nil, err
	}
	if i := l.peek(); i != nil {
		return i, nil, nil
	}
	e := l.e.Load()
	var permanent *PermanentError
	if e.attempts > attempts && errors.As(e.lastErr, &permanent) {
		return nil, nil, fmt.Errorf("svid: no certificate for %s: %w", l.id, e.lastErr)
	}
	m.raiseLocked(e, OnDemand, time.Now())
	return nil, e.changed, nil
}

func (l *Lease) endLocked(err error) {
	if l.Err() != nil {
		return
	}
	l.err = err
	close(l.done)
}
