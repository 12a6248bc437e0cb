package enroll

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/warren-mesh/warren/cni/event"
)

// outside says why a pod of which nothing is known may start all the same; empty: it may
// not. Without us the plugin would let it start if no pod of its namespace was in the
// mesh, and an agent that hears nothing is not to be worse than none: one pod that says
// of itself that it belongs into the mesh, as the first of its namespace, is taken in
// while it runs, when its object is seen.
func (e *Enroller) outside(namespace string) string {
	if namespace != "" && slices.Contains(e.cfg.Exempt, namespace) {
		return "its namespace is exempt from the mesh"
	}
	view, _ := e.cfg.World.View()
	if view == nil {
		away, err := event.ReadAway(filepath.Join(e.cfg.StateDir, event.AwayName))
		if err != nil || away.Mode(namespace) != event.NSOut {
			return ""
		}
		return "no pod of its namespace was in the mesh when an earlier agent last heard of the cluster, of which this one has not heard yet"
	}
	stale := e.stale()
	if stale == "" || view.modes[namespace] != event.NSOut {
		return ""
	}
	return fmt.Sprintf("no pod of its namespace is in the mesh, as far as is known: no news arrive (%s)", stale)
}

func (e *Enroller) stale() string {
	if e.cfg.Stale == nil {
		return ""
	}
	return e.cfg.Stale()
}
