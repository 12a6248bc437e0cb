package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-mesh/warren/cni/redirect"
)

const (
	thorough = 15 // how many checks are between those that take no number's word
	seldom   = 15 // how many intervals are between looks for a kubelet that never was there

	opTimeout = 15 * time.Second // of one look and repair
	// Who else wants the first place gets it for longer and longer: between two
	// programs that both insist there is no end.
	maxPatience = 30 * time.Second
	calmAfter   = 10 * time.Minute
)

// State is what there is to say of the host's rules.
type State struct {
	Backend   string
	Limit     Limit
	Addresses int
	Problem   string // why the rules are not what they should be; "" when they are
}

// State is for the agent's status.
func (p *Probe) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := State{Backend: p.b.name(), Limit: p.limit, Addresses: len(p.claims)}
	if p.problem != nil {
		s.Problem = p.problem.Error()
	}
	return s
}

// Run keeps rules and sets as they should be until ctx ends: others flush
// tables and insert rules, and kubelet restarts.
func (p *Probe) Run(ctx context.Context) error {
	tick := time.NewTicker(p.cfg.Interval)
	defer tick.Stop()
	said := ""
	for {
		text := ""
		if err := p.Check(ctx); err != nil && ctx.Err() == nil {
			text = err.Error()
		}
		if text != said && text != "" { // once, not every two seconds
			p.log.Error("the host's rules for kubelet's probes cannot be kept", "err", text)
		}
		said = text
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Check looks once and puts right what is wrong. It is what Run does at each of
// its intervals.
func (p *Probe) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	done, err := p.take(ctx)
	if err != nil {
		return err
	}
	defer done()
	p.refreshLimit()
	if p.isRemoved() {
		return nil
	}
	p.checks++
	n, ok := p.b.generation()
	ds, err := p.look(ctx, ok && n == p.sound && p.checks%thorough != 0)
	if err == nil && len(ds) == 0 {
		p.sound = n // asked for before we looked
	}
	if err != nil || len(ds) == 0 {
		p.note(err)
		p.calm.quiet(time.Now())
		return err
	}
	if !p.calm.mayAct(ds, time.Now()) {
		return nil
	}
	p.log.Warn("the host's rules for kubelet's probes are put right", "found", texts(ds))
	return p.repair(ctx)
}

// Verify says what differs from what should be there, and changes nothing.
func (p *Probe) Verify(ctx context.Context) ([]string, error) {
	done, err := p.take(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	ds, err := p.look(ctx, false)
	return texts(ds), err
}

func (p *Probe) isRemoved() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.removed
}

func (p *Probe) note(problem error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problem = problem
}

func (p *Probe) rules() rules {
	p.mu.Lock()
	defer p.mu.Unlock()
	return rules{limit: p.limit, ip4: p.cfg.IP4, ip6: p.cfg.IP6, tests: p.tests}
}

// toDo is what leads from the sets as they were last seen to what is wanted. It
// is taken to be done.
func (p *Probe) toDo() (put map[netip.Addr]string, drop []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	want := p.claims.members()
	put, drop = diffMembers(want, p.applied)
	if !p.whole { // those that we know nothing of are an earlier agent's
		drop = nil
	}
	p.applied = want
	return put, drop
}

// look says what differs. sound: the rules are known not to, and with nftables
// neither do the sets.
func (p *Probe) look(ctx context.Context, sound bool) (ds []drift, err error) {
	if sound && p.b.name() == nftName {
		return nil, nil
	}
	if !sound {
		p.sound = 0
		ds, err = p.b.drift(ctx, p.rules())
	}
	if err == nil {
		p.applied, err = p.b.members(ctx)
	}
	if err != nil {
		p.applied = nil
		return nil, fmt.Errorf("probe: with %s: %w", p.b.name(), err)
	}
	have := p.applied
	put, drop := p.toDo()
	p.applied = have
	for a, owner := range put {
		ds = append(ds, drift{text: fmt.Sprintf("address %s of pod %s is missing", a, owner)})
	}
	for _, a := range drop {
		ds = append(ds, drift{text: fmt.Sprintf("address %s, of %q, should not be there", a, have[a])})
	}
	return ds, nil
}

// repair makes everything as it should be.
func (p *Probe) repair(ctx context.Context) error {
	p.sound = 0
	err := p.tryRepair(ctx)
	if err != nil {
		p.applied = nil
		err = fmt.Errorf("probe: with %s: %w", p.b.name(), err)
	}
	p.note(err)
	return err
}

func (p *Probe) tryRepair(ctx context.Context) error {
	ds, errs := p.b.drift(ctx, p.rules())
	if errs == nil && len(ds) > 0 {
		errs = p.b.apply(ctx, p.rules())
	}
	// Whatever became of the rules: those of the other family may work.
	var err error
	if p.applied, err = p.b.members(ctx); err != nil {
		return errors.Join(errs, err)
	}
	put, drop := p.toDo()
	return errors.Join(errs, p.b.edit(ctx, put, drop))
}

// refreshLimit looks for kubelet again when it is another process than it was.
func (p *Probe) refreshLimit() {
	if p.cfg.Limit == WholeHost || p.finder.same(p.kubelets) {
		return
	}
	if p.looks++; len(p.kubelets) == 0 && p.looks%seldom != 1 {
		return
	}
	found, err := p.finder.find()
	if err != nil || len(found) == 0 && len(p.kubelets) > 0 {
		return // it is being restarted; until then the rules stay
	}
	if before := p.setLimit(found, nil); !before.equal(p.limit) {
		p.log.Info("kubelet is another process", "limit", p.limit.String())
	}
}

func (p *Probe) chooseLimit() {
	if p.cfg.Limit == WholeHost {
		p.limit = Limit{Kind: ByNothing, Why: "so configured"}
		return
	}
	found, err := p.finder.find()
	p.setLimit(found, err)
}

// setLimit takes kubelets for what find returned, and returns the limit that
// there was.
func (p *Probe) setLimit(found []kubelet, err error) (before Limit) {
	lasting := p.b.name() == redirect.NameLegacy
	l := limitTo(found, lasting)
	if err != nil {
		l.Why = "kubelet cannot be found: " + err.Error()
	}
	if l.Kind == ByCgroup {
		if err := p.tryCgroups(); err != nil && !errors.Is(err, errNoTrial) {
			for i := range found {
				found[i].Shared = "rules by cgroup do not work here: " + err.Error()
			}
			l = limitTo(found, lasting)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	before, p.limit, p.kubelets, p.sound = p.limit, l, found, 0
	return before
}

// calm decides whether to act on what was found.
type calm struct {
	patience time.Duration
	until    time.Time // let the first place be others' until then
	moved    time.Time // when we last took it
}

// mayAct is false while somebody who took the first place may keep it. Anything
// else is put right at once.
func (c *calm) mayAct(ds []drift, now time.Time) bool {
	if slices.ContainsFunc(ds, func(d drift) bool { return !d.place }) {
		return true
	}
	if now.Before(c.until) {
		return false
	}
	c.patience = min(max(2*c.patience, time.Second), maxPatience)
	c.until, c.moved = now.Add(c.patience), now
	return true
}

func (c *calm) quiet(now time.Time) {
	if c.patience > 0 && now.Sub(c.moved) > calmAfter {
		*c = calm{}
	}
}

func texts(ds []drift) (all []string) {
	const most = 20
	for i, d := range ds {
		if i == most {
			return append(all, fmt.Sprintf("and %d more", len(ds)-most))
		}
		all = append(all, d.text)
	}
	return all
}
