package nodeagent

import (
	"context"
	"errors"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/podwatch"
	"github.com/warren-mesh/warren/xds/translate"
)

// cluster is what the agent tells the API server. It is nil where there is none.
type cluster struct {
	marker *podwatch.Marker
	events *podwatch.Events
	taints *podwatch.Taints // nil: none are to be removed
	owner  *podwatch.Owner  // nil: no DaemonSet's
	others *podwatch.Labelled
	log    *slog.Logger
}

// joinCluster makes the parts that write to the API server.
func (a *Agent) joinCluster(selectors translate.Selectors) {
	client := a.source.client
	if client == nil {
		return
	}
	a.cluster = &cluster{
		log:    a.log,
		events: podwatch.NewEvents(client, a.cfg.NodeName, a.log),
		marker: podwatch.NewMarker(client, func() ([]enroll.Mark, <-chan struct{}) { return a.enroll.Marks() }, a.watch, a.log),
	}
	a.cluster.others = &podwatch.Labelled{Pods: client.pods, Watcher: a.watch, Selectors: selectors, Log: a.log}
	if len(a.cfg.RemoveTaints) > 0 {
		a.cluster.taints = &podwatch.Taints{Client: client, Node: a.cfg.NodeName, Keys: a.cfg.RemoveTaints, Ready: a.ready, Log: a.log}
	}
	if a.cfg.DaemonSet != "" {
		a.cluster.owner = &podwatch.Owner{Client: client, Namespace: a.cfg.OwnNamespace, Name: a.cfg.DaemonSet, Node: a.cfg.NodeName}
	}
}

// tell passes on what people are to hear about a pod.
func (c *cluster) tell(n enroll.Notice) {
	if c != nil {
		c.events.Tell(n)
	}
}

// run adds what writes to a group; only says that the agent takes no pods.
func (c *cluster) run(ctx context.Context, group *errgroup.Group, only bool) {
	if c == nil {
		return
	}
	group.Go(func() error { return c.marker.Run(ctx) })
	group.Go(func() error { return c.events.Run(ctx) })
	if only {
		return
	}
	group.Go(func() error { return c.others.Run(ctx) })
	if c.taints != nil {
		group.Go(func() error { return c.taints.Run(ctx) })
	}
	if c.owner != nil {
		group.Go(func() error {
			c.owner.Look(ctx, func(err error) {
				c.log.Warn("cannot look at the agent's DaemonSet yet: until then it is not known at its end whether a successor comes, and everything stays", "err", err)
			})
			return nil
		})
	}
}

// problem says what cannot be written; nil when everything can.
func (c *cluster) problem() error {
	if c == nil {
		return nil
	}
	return errors.Join(c.marker.Problem(), c.events.Problem())
}
