package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/svid"
)

const (
	retryBase = 500 * time.Millisecond
	retryMax  = 15 * time.Second
)

// Self keeps this process's own identity current. Make it with NewSelf; Run fetches.
type Self struct {
	source svid.Watcher
	want   spiffeid.ID // zero: the only one there is
	log    *slog.Logger

	mu      sync.Mutex
	current *mtls.Identity
	next    *mtls.Identity // came before its time
	err     error
	changed chan struct{}
}

// NewSelf takes identities from source: the one called want or, if want is zero, the only one there is. The order of
// several means nothing, so that a choice has to be made by name.
func NewSelf(source svid.Watcher, want spiffeid.ID, log *slog.Logger) *Self {
	return &Self{source: source, want: want, log: log, changed: make(chan struct{})}
}

// Run watches until ctx ends, and returns nil.
func (s *Self) Run(ctx context.Context) error {
	for failures := 0; ; {
		heard := false
		err := s.source.Watch(ctx, svid.Pod{}, s.want, func(u svid.Update) {
			heard = true
			s.take(s.choose(u))
			s.trust(u)
		})
		if ctx.Err() != nil {
			return nil
		}
		var withdrawn *svid.WithdrawnError
		s.lost(err, errors.As(err, &withdrawn))
		if failures++; heard {
			failures = 1
		}
		pause := min(retryMax, retryBase<<min(failures-1, 10))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
}

func (s *Self) choose(u svid.Update) (*mtls.Identity, error) {
	var chosen *svid.SVID
	names := make([]string, 0, len(u.SVIDs))
	for i := range u.SVIDs {
		names = append(names, u.SVIDs[i].ID.String())
		if u.SVIDs[i].ID == s.want || s.want.IsZero() && len(u.SVIDs) == 1 {
			chosen = &u.SVIDs[i]
		}
	}
	switch {
	case chosen != nil:
		return svid.InTime(chosen.Chain, time.Now(), func(at time.Time) (*mtls.Identity, error) {
			return mtls.NewIdentity(chosen.ID, chosen.Key, chosen.Chain, chosen.Roots, at)
		})
	case len(names) == 0:
		return nil, errors.New("the agent has no identity for this process: register one for it")
	case s.want.IsZero():
		return nil, fmt.Errorf("the agent has several identities for this process, say which: %s", strings.Join(names, ", "))
	default:
		return nil, fmt.Errorf("the agent does not give this process %s, but %s", s.want, strings.Join(names, ", "))
	}
}

// take puts an identity to use; a message without a usable one leaves what is still valid alone, unless there is none
// in it at all. One that comes with an error is for later.
func (s *Self) take(i *mtls.Identity, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.takeLocked(i, err)
}

func (s *Self) takeLocked(i *mtls.Identity, err error) {
	s.err, s.next = err, nil
	switch {
	case err == nil:
		s.current = i
		s.log.Info("own identity received", "identity", i.String())
	case i != nil:
		s.next = i
		time.AfterFunc(time.Until(i.NotBefore()), func() { s.mature(i) })
		s.log.Warn("own identity received before its time", "err", err)
	default:
		s.log.Warn("own identity not received", "err", err)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// trust has the identity in use trust what the message says, though it may have brought no other: a root that has gone is
// not believed any more. What cannot be used says nothing.
func (s *Self) trust(u svid.Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range u.SVIDs {
		if s.current == nil || one.ID != s.current.ID() {
			continue
		}
		roots, err := mtls.NewRoots(one.Roots)
		if err == nil || len(one.Roots) == 0 { // none are trusted then
			s.current = s.current.WithRoots(roots)
		}
		return
	}
}

// mature is when the time of an identity has come, unless another word has come before.
func (s *Self) mature(i *mtls.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == i {
		s.takeLocked(i, nil)
	}
}

func (s *Self) lost(err error, withdrawn bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	if withdrawn {
		s.current, s.next = nil, nil
	}
	s.log.Warn("own identity is not watched", "err", err)
}

// Identity is the current one, waited for until ctx ends.
func (s *Self) Identity(ctx context.Context) (*mtls.Identity, error) {
	for {
		s.mu.Lock()
		i, err, changed := s.current, s.err, s.changed
		s.mu.Unlock()
		if i != nil && !i.Expired(time.Now()) {
			return i, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("this process has no identity of its own: %w", errors.Join(err, ctx.Err()))
		}
	}
}
