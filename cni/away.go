package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/warren-mesh/warren/cni/event"
)

// known is what can be said of a pod while the agent is away.
type known struct {
	mode string // of its namespace, as in the away file; empty: not known
	why  error  // why not
}

// awayMode looks the pod's namespace up in the file that the agent left.
func (c *call) awayMode() known {
	away, err := event.ReadAway(filepath.Join(c.conf.StateDir, event.AwayName))
	if errors.Is(err, os.ErrNotExist) {
		return known{why: fmt.Errorf("it has left no decisions in %s", c.conf.StateDir)}
	}
	if err != nil {
		return known{why: err}
	}
	if mode := away.Mode(c.pod.namespace); mode != "" {
		return known{mode: mode}
	}
	return known{why: fmt.Errorf("namespace %s is newer than the decisions that it left", c.pod.namespace)}
}

// decideAway admits a pod that is known to be outside the mesh, and refuses one
// that is or may be in it: it would talk in plaintext.
func (c *call) decideAway(away error) error {
	const advice = "see to it that Warren's node agent runs on this node; the runtime will try again"
	k := c.awayMode()
	switch k.mode {
	case event.NSOut:
		c.log.Warn("admitted without the node agent", "reason", "no pod of its namespace is in the mesh", "err", away)
		return nil
	case event.NSIn:
		return failure(types.ErrTryAgainLater, fmt.Errorf("%w, and namespace %s is in the mesh", away, c.pod.namespace), advice)
	case event.NSMixed:
		return failure(types.ErrTryAgainLater, fmt.Errorf("%w, and pods of namespace %s may be in the mesh", away, c.pod.namespace), advice)
	}
	if c.conf.WithoutAgent == Allow {
		c.log.Warn("admitted without the node agent, as withoutAgent allows", "reason", k.why.Error(), "err", away)
		return nil
	}
	return failure(types.ErrTryAgainLater, fmt.Errorf("%w, and %w", away, k.why), advice)
}
