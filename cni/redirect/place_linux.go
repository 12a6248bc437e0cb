package redirect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
)

const (
	// OpTimeout bounds each call of a Backend. The plugin gives up at 10 s and
	// needs time to undo.
	OpTimeout = 4 * time.Second
	maxTries  = 3 // to make rules so that somebody else changes meanwhile
)

var errChanged = errors.New("the rules were changed again, each time that they were set")

// limits are what bounds the calls of a backend.
type limits struct {
	timeout  time.Duration // OpTimeout
	patience time.Duration // lockPatience
	turns    *turns        // shared by the backends of one look-up
}

func defaultLimits() limits { return limits{OpTimeout, lockPatience, &turns{}} }

// place is a namespace that one call is at work in.
type place struct {
	ns     *netns.NS
	routes *routes
	locked bool // nobody else of ours is at work there
}

// visit gives fn the namespace, to itself as far as that can be had, until the
// timeout.
func (l limits) visit(ns *netns.NS, what, backend string, fn func(context.Context, place) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), l.timeout)
	defer cancel()
	done, err := l.turns.take(ctx, ns.ID())
	if err != nil {
		return fmt.Errorf("redirect: %s in %s: %w", what, ns.ID(), err)
	}
	defer done()
	unlock, locked, err := lock(ctx, ns, l.patience)
	if err != nil {
		return fmt.Errorf("redirect: %s in %s: %w", what, ns.ID(), err)
	}
	defer unlock()
	r, err := openRoutes(ns)
	if err != nil {
		return fmt.Errorf("redirect: %s in %s: %w", what, ns.ID(), err)
	}
	defer r.close()
	if err := fn(ctx, place{ns, r, locked}); err != nil {
		return fmt.Errorf("redirect: %s in %s with %s: %w", what, ns.ID(), backend, err)
	}
	return nil
}

// families are those that the kernel has in the namespace.
func (p place) families() (fs []Family) {
	if p.routes.v6.kernel {
		return []Family{IPv4, IPv6}
	}
	return []Family{IPv4}
}

// applied puts routes and rules in place, those by apply, which says whether there had
// been any of ours. A pod that had none starts afresh: see startAfresh.
func (p place) applied(ctx context.Context, c Config, apply func() (had bool, err error)) error {
	if err := p.routes.add(c); err != nil {
		return err
	}
	outlived, err := p.outlived(ctx)
	if err != nil {
		return err
	}
	had, err := apply()
	if err != nil || had {
		return err
	}
	return p.startAfresh(ctx, c, outlived)
}

// cleared is for a pod whose rules of ours have just gone: its routes go, and what
// conntrack remembers of those that were captured. Both are left to another mesh that has
// redirected the pod, whose they are as well: its proxy serves what it has.
func (p place) cleared(ctx context.Context) error {
	theirs, err := p.strangers(ctx)
	if err != nil || len(theirs) > 0 {
		return err
	}
	return errors.Join(p.routes.remove(), p.forget(ctx, captured))
}
