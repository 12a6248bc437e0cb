package cni

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
)

// del never fails: what cannot be undone now is left to the agent, and what
// the pod's namespace held goes with it. It needs no CNI_NETNS.
func (c *call) del(ctx context.Context) error {
	if c.pod.kubernetes() && c.outside() != "" {
		return nil // nobody was asked about it, so nobody knows it
	}
	err := c.client.Del(ctx, c.key(), c.pod.uid)
	if err == nil {
		c.log.Info("deleted")
		return nil
	}
	if c.key().Validate() != nil {
		c.log.Warn("nothing to delete: no ADD can have had these names", "err", err)
		return nil
	}
	tomb := event.Tombstone{Key: c.key(), PodUID: c.pod.uid}
	if tombErr := event.WriteTombstone(c.conf.StateDir, tomb); tombErr != nil {
		c.log.Error("the node agent does not know of this DEL", "err", errors.Join(err, tombErr))
		return nil
	}
	c.log.Warn("left the DEL for the node agent to find", "err", err)
	return nil
}

// check asks the agent what it set up and looks whether it is there.
func (c *call) check(ctx context.Context) error {
	if _, err := c.chained(); err != nil {
		return err
	}
	if c.outside() != "" {
		return nil
	}
	answer, err := c.client.Check(ctx, c.key())
	switch {
	case errors.Is(err, event.ErrAway) && c.awayMode().mode == event.NSOut:
		return nil
	case err != nil:
		return agentFailure(err)
	case answer.Action == event.Leave:
		return nil
	}
	ns, err := c.openNetns()
	if err != nil {
		return err
	}
	defer ns.Close()
	backend, err := c.Backend(answer.Redirect.Backend)
	if err != nil {
		c.log.Info("the rules were checked by the node agent only", "reason", err.Error())
		return nil
	}
	diffs, err := backend.Verify(ns, redirectConfig(*answer.Redirect))
	switch {
	case errors.Is(err, redirect.ErrNoIP6Tables):
		c.log.Info("the rules were checked by the node agent only", "reason", err.Error())
		return nil
	case err != nil:
		return failure(types.ErrInternal, fmt.Errorf("verify the redirection in %s: %w", c.args.Netns, err), "see whether the namespace still exists and iptables or nftables works on this node")
	case len(diffs) > 0:
		return types.NewError(types.ErrInternal, "the pod's redirection is not what the node agent set up: "+strings.Join(diffs, "; "),
			"something in the pod or on the node has changed its rules; restart the pod, or the node agent, which repairs them")
	}
	return nil
}

// gc hands the runtime's list to the agent.
func (c *call) gc(ctx context.Context) error {
	if c.conf.ValidAttachments == nil {
		c.log.Warn("nothing collected: the runtime did not say which attachments are valid")
		return nil
	}
	if err := c.client.GC(ctx, c.conf.Name, c.conf.ValidAttachments); err != nil {
		return agentFailure(err)
	}
	return nil
}

// status fails only when not even a pod outside the mesh could be admitted. A
// runtime that sees it fail takes the node's network for down and starts no
// pod, the agent's and the proxy's included.
func (c *call) status(ctx context.Context) error {
	err := c.client.Status(ctx)
	if err == nil {
		return nil
	}
	if c.conf.WithoutAgent == Allow {
		c.log.Warn("the node agent cannot decide about pods; they are admitted as withoutAgent allows", "err", err)
		return nil
	}
	_, awayErr := event.ReadAway(filepath.Join(c.conf.StateDir, event.AwayName))
	if awayErr == nil {
		c.log.Warn("the node agent cannot decide about pods; those outside the mesh are admitted", "err", err)
		return nil
	}
	return failure(codeUnavailable, fmt.Errorf("no pod can be admitted: %w, and %w", err, awayErr),
		"see to it that Warren's node agent runs on this node, or set withoutAgent to allow")
}
