package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
)

func (c *call) add(ctx context.Context) error {
	prev, err := c.chained()
	if err != nil {
		return err
	}
	out, err := render(c.conf.PrevResult, prev, c.conf.CNIVersion)
	if err != nil {
		return failure(types.ErrDecodingFailure, err, "the plugin before "+conflist.Type+" in the conflist is at fault")
	}
	if why := c.outside(); why != "" {
		c.log.Info("left alone", "reason", why)
	} else if err := c.admit(ctx, prev); err != nil {
		return err
	}
	if _, err := c.Stdout.Write(out); err != nil {
		return failure(types.ErrIOFailure, fmt.Errorf("print the result: %w", err), "")
	}
	return nil
}

// admit brings the pod into the mesh or finds that it does not belong there.
func (c *call) admit(ctx context.Context, prev prevResult) error {
	ips, err := prev.addresses()
	if err != nil {
		return failure(types.ErrDecodingFailure, err, "the plugin before "+conflist.Type+" in the conflist is at fault")
	}
	ns, err := c.openNetns()
	if err != nil {
		return err
	}
	defer ns.Close()

	p := &programmer{call: c, ctx: ctx, ns: ns}
	served := false
	defer func() { // also when something panics
		if !served {
			p.undo()
		}
	}()
	answer, err := c.client.Add(ctx, event.Add{
		Key: c.key(), Network: c.conf.Name, PodName: c.pod.name, PodNamespace: c.pod.namespace, PodUID: c.pod.uid,
		IPs: ips, Netns: c.args.Netns,
	}, ns.File(), p.program)
	switch {
	case errors.Is(err, event.ErrAway):
		return c.decideAway(err)
	case err != nil && p.failed != nil:
		return p.failed
	case err != nil:
		return agentFailure(err)
	}
	served = true
	if answer.Action == event.Leave {
		c.log.Info("left alone", "reason", answer.Reason)
	} else {
		c.log.Info("in the mesh", "programmed", p.how, "backend", p.name)
	}
	return nil
}

// openNetns opens the pod's namespace. The host's own is refused, whatever the
// runtime allows: the rules would capture the host.
func (c *call) openNetns() (*netns.NS, error) {
	const advice = "the runtime will try again with a new sandbox"
	ns, err := netns.Open(c.args.Netns)
	if err != nil {
		return nil, failure(types.ErrInvalidNetNS, fmt.Errorf("the pod's network namespace: %w", err), advice)
	}
	own, err := netns.Current()
	if err == nil {
		defer own.Close()
		if own.ID() == ns.ID() {
			err = fmt.Errorf("CNI_NETNS %s is the namespace that the plugin itself runs in", c.args.Netns)
		}
	}
	if err != nil {
		ns.Close()
		return nil, failure(types.ErrInvalidNetNS, err, "a pod must have a network namespace of its own")
	}
	return ns, nil
}

// programmer puts the redirection in place and takes it away again.
type programmer struct {
	*call
	ctx     context.Context // of the verb; calls come back from the client, which has none to give
	ns      *netns.NS
	backend redirect.Backend // not nil once rules may be there that were not before
	how     string
	name    string
	failed  *types.Error
}

// program is the client's callback.
func (p *programmer) program(r event.Redirect) (how string, err error) {
	p.how, err = p.try(r)
	if err != nil {
		code := types.ErrInternal
		if errors.Is(err, context.DeadlineExceeded) {
			code = types.ErrTryAgainLater
		}
		p.failed = failure(code, fmt.Errorf("program the redirection in %s: %w", p.args.Netns, err),
			"see whether the namespace still exists and iptables or nftables works on this node; what was done is undone")
		return "", p.failed
	}
	return p.how, nil
}

func (p *programmer) try(r event.Redirect) (how string, err error) {
	backend, err := p.Backend(r.Backend)
	if err != nil { // the host does not have it; the agent, which brings its own programs, may
		p.log.Info("left the rules to the node agent", "reason", err.Error())
		return event.ByAgent, nil
	}
	conf := redirectConfig(r)
	// Rules that are in place, from an ADD before, are not this one's to undo.
	// (What another mesh has put there the agent has looked for before it answered.)
	diffs, err := backend.Verify(p.ns, conf)
	if errors.Is(err, redirect.ErrNoIP6Tables) {
		p.log.Info("left the rules to the node agent", "reason", err.Error())
		return event.ByAgent, nil
	}
	p.name = backend.Name()
	if err != nil || len(diffs) == 0 {
		return event.ByPlugin, err
	}
	if p.ctx.Err() != nil {
		return "", context.Cause(p.ctx)
	}
	p.backend = backend
	return event.ByPlugin, backend.Apply(p.ns, conf)
}

// undo removes what program did, and only that. The pod's sandbox is about to
// go; until then nothing of ours is left in it.
func (p *programmer) undo() {
	if p.backend == nil {
		return
	}
	if err := p.backend.Remove(p.ns); err != nil {
		p.log.Warn("cannot undo the redirection", "err", err)
	}
}

func redirectConfig(r event.Redirect) redirect.Config {
	return redirect.Config{
		IPv4: true, IPv6: r.IPv6, DNS: r.DNS, BypassInbound: r.BypassInbound,
		VirtualInterfaces: r.VirtualInterfaces, ProbeIP4: r.ProbeIP4, ProbeIP6: r.ProbeIP6,
	}
}
