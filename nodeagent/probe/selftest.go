package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
)

// maxTried bounds the connections of one self-test, each of which may wait for
// an answer that does not come.
const maxTried = 8

// Target is a pod to try, which is in the mesh or not. For a moment something
// listens in it, on a port that nobody else uses.
type Target struct {
	Name  string // for the findings
	NS    *netns.NS
	Addrs []netip.Addr
}

// SelfTest puts the rules in place, reads what there is on the node, connects to
// the targets as kubelet would, and says what is broken, what is not as good as
// it could be, and what to set. Without targets it makes a namespace that stands
// in for a pod; a pod shows more, for it is behind the network plugin.
func (p *Probe) SelfTest(ctx context.Context, targets ...Target) []Finding {
	p.testing.Lock()
	defer p.testing.Unlock()
	setup := p.Check(ctx)
	f := p.read(ctx)
	f.setup = setup
	if setup != nil {
		return judge(f, nil)
	}
	var rs []result
	if len(targets) == 0 {
		standIn, remove, err := p.standIn(f)
		if err != nil {
			return judge(f, []result{{pod: "a stand-in", untried: err}})
		}
		defer remove()
		targets = []Target{standIn}
	}
	for _, t := range targets {
		for _, a := range t.Addrs {
			if a = a.Unmap(); p.b.refuses(a) == "" && len(rs) < maxTried && ctx.Err() == nil {
				rs = append(rs, p.tryPod(ctx, t, a))
			}
		}
	}
	return judge(f, rs)
}

// tryPod connects to a listener in the pod. The connection is ours, not
// kubelet's, so that there is a rule for it of its own.
func (p *Probe) tryPod(ctx context.Context, t Target, a netip.Addr) (r result) {
	r = result{pod: t.Name, addr: a, want: p.rules().source(a)}
	try := func(translate bool) (netip.Addr, error) {
		var untried error
		from, err := meet(ctx, t.NS, p.place.ns, netip.AddrPortFrom(a, 0), func(to netip.AddrPort) error {
			untried = p.setTests(ctx, test{to, translate})
			return untried
		})
		if untried != nil {
			r.untried = untried
		}
		return from, err
	}
	r.from, r.err = try(true)
	if errors.Is(r.err, errListen) {
		r.untried = r.err
	}
	if r.untried == nil && r.err != nil && !errors.Is(r.err, errUnseen) {
		if _, r.control = try(false); errors.Is(r.control, errUnseen) {
			r.control = nil // somebody in the pod answered
		}
		r.filter = podFilter(t.NS, a, r.want)
	}
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	if err := p.setTests(cleanup); err != nil {
		p.log.Warn("a rule of the self-test is left until the next look", "err", err)
	}
	if r.untried == nil && ctx.Err() != nil {
		r.untried = ctx.Err()
	}
	return r
}

// setTests puts the self-test's rules in front of the others, or takes them away.
func (p *Probe) setTests(ctx context.Context, tests ...test) error {
	done, err := p.take(ctx)
	if err != nil {
		return err
	}
	defer done()
	if p.isRemoved() {
		return errRemoved
	}
	p.mu.Lock()
	p.tests = tests
	p.mu.Unlock()
	p.sound = 0
	if err := p.b.apply(ctx, p.rules()); err != nil {
		return fmt.Errorf("probe: the self-test's rule: %w", err)
	}
	return nil
}

// SelfTestTimeout is more than a self-test ever needs.
const SelfTestTimeout = maxTried*2*(connectWait+acceptWait) + 2*opTimeout + 10*time.Second
