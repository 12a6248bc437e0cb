package enroll

import (
	"context"
	"fmt"
	"time"

	"github.com/warren-mesh/warren/xds/translate"
)

const (
	retirePoll  = 50 * time.Millisecond
	retireGrace = 3 * time.Second // for connections that the proxy carries
	letWithin   = 8 * time.Second // pods that are through wait so long for others to have their network back
)

// Retire takes every pod out of the mesh, because the mesh leaves this node, and takes
// none in any more: new pods start outside. It returns when that is done, or an error
// that says of how many pods it is not. Run goes on meanwhile.
func (e *Enroller) Retire(ctx context.Context, why string) error {
	e.mu.Lock()
	e.retired = why
	e.mu.Unlock()
	tick := time.NewTicker(retirePoll)
	defer tick.Stop()
	for {
		view, _ := e.cfg.World.View()
		e.compare(view)
		left := e.inMesh()
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("enroll: %d pods are still in the mesh: %w", left, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// inMesh counts the pods that the mesh has something in.
func (e *Enroller) inMesh() (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.members {
		if m.box != nil && (m.phase.served() || m.phase == PhaseAdding) {
			n++
		}
	}
	return n
}

// retiringLocked is actionLocked once the mesh leaves this node.
func (e *Enroller) retiringLocked(m *member) (action, Pod) {
	p := Pod{PodName: m.name, UID: m.uid, ServiceAccount: m.serviceAccount, Eligible: translate.Eligibility{Reason: e.retired}}
	if m.phase.served() {
		return actLeave, p
	}
	return actNone, p
}

// isRetired says why no pod is taken in any more; empty: they are.
func (e *Enroller) isRetired() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.retired
}
