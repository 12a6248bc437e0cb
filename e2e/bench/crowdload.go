package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/warren-mesh/warren/e2e/bench/ends"
	"github.com/warren-mesh/warren/e2e/onehost"
)

// crowdSizes are the meshes that proxies are put into, by workloads.
var crowdSizes = []int{100, 10_000, 100_000}

func crowdID(size int) string { return fmt.Sprintf("xds/%d", size) }
func crowdTitle(size int) string {
	return fmt.Sprintf("a mesh of %d workloads and %d services", size, size/perService)
}

var (
	colSync      = column{"sync_s", "start to ready s", "%.3f", false}
	colSyncCPU   = column{"sync_cpu_s", "CPU s till then", "%.3f", false}
	colPeak      = column{"peak_mib", "MiB at most", "%.1f", false}
	colRest      = column{"rest_mib", "MiB at rest", "%.1f", false}
	colChange    = column{"change_us", "CPU µs a change", "%.1f", false}
	colCalm      = column{"calm_p99_us", "p99 µs, 16 at once", "%.0f", false}
	colChurn     = column{"churn_p99_us", "while 500/s change", "%.0f", false}
	colChurnMore = column{"churn_ratio", "that is", "%.2f", false}
)

const (
	changeEvery = 2 * time.Millisecond
	changes     = 500 // that the cost of one is taken from
)

// crowds puts proxies into large meshes: how long until one that starts serves, what it
// takes, what one change costs, and what traffic notices of many.
func (b *bench) crowds(ctx context.Context) error {
	var errs []error
	for _, size := range crowdSizes {
		if b.wanted(crowdID(size)) && ctx.Err() == nil {
			errs = append(errs, b.crowdOf(ctx, size))
		}
	}
	return errors.Join(errs...)
}

func (b *bench) crowdOf(ctx context.Context, size int) (err error) {
	before := len(b.beds)
	defer func() { err = errors.Join(err, b.close(before)) }()
	r := &LoadReport{ID: crowdID(size), Title: crowdTitle(size), Columns: []column{colSync, colSyncCPU, colPeak, colRest, colChange, colCalm, colChurn, colChurnMore}}
	var subjects []subject
	var worlds []*crowd
	for _, p := range b.proxies() {
		if b.Subjects != nil && !b.Subjects.MatchString(p.Name) {
			continue
		}
		world, err := newCrowd(size)
		if err != nil {
			return err
		}
		s := subject{name: p.Name}
		if b.Peer != nil && p.Name != b.Peer.Name {
			s.base = b.Peer.Name
		}
		p.play = world
		if s.bed, err = b.bed(ctx, p, 0); err != nil {
			return err
		}
		subjects, worlds = append(subjects, s), append(worlds, world)
		r.Subjects = append(r.Subjects, &SubjectReport{Name: s.name, Base: s.base})
	}
	for range b.Rounds {
		for i, s := range subjects {
			f, err := b.crowded1(ctx, s, worlds[i])
			if err != nil {
				return fmt.Errorf("%s, %s: %w%s", r.ID, s.name, err, s.lastWords())
			}
			r.Subjects[i].Rounds = append(r.Subjects[i].Rounds, f)
		}
	}
	r.sum()
	b.report.Loads = append(b.report.Loads, r)
	r.print(b.out)
	return nil
}

// crowded1 is one round: the proxy of the first node starts anew, then both carry
// traffic.
func (b *bench) crowded1(ctx context.Context, s subject, world *crowd) (figures, error) {
	if err := quiet(ctx, b.Patience); err != nil {
		return nil, err
	}
	f, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.touch(ctx, across); err != nil {
		return nil, err
	}
	wait(ctx, settle)
	m, err := s.memory()
	if err != nil {
		return nil, err
	}
	f[colRest.Key] = float64(m[0]) / mib
	profiled := b.profile(ctx, load{id: crowdID(world.size) + "-change"}, s)
	f[colChange.Key], err = s.changes(ctx, world)
	if err = errors.Join(err, <-profiled); err != nil {
		return nil, err
	}
	calm, err := messages(ctx, b.Config, s, across, ends.Plan{Op: ends.Echo, Conns: 16, Size: 1})
	if err != nil {
		return nil, err
	}
	stop := world.churn(ctx)
	churned, err := messages(ctx, b.Config, s, across, ends.Plan{Op: ends.Echo, Conns: 16, Size: 1})
	if err = errors.Join(err, stop()); err != nil {
		return nil, err
	}
	f[colCalm.Key], f[colChurn.Key] = calm[colP99.Key], churned[colP99.Key]
	f[colChurnMore.Key] = churned[colP99.Key] / calm[colP99.Key]
	return f, nil
}

// sync starts the first node's proxy anew and reads what that took until it was ready.
func (s subject) sync(ctx context.Context) (figures, error) {
	n := s.bed.Nodes[0]
	if err := n.KillProxy(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	began := time.Now()
	if err := n.StartProxy(ctx); err != nil {
		return nil, err
	}
	if err := n.WaitProxyReady(ctx); err != nil {
		return nil, err
	}
	took := time.Since(began)
	used, err := onehost.CPU(n.ProxyPID())
	if err != nil {
		return nil, err
	}
	peak, err := onehost.PeakMemory(n.ProxyPID())
	if err != nil {
		return nil, err
	}
	return figures{colSync.Key: took.Seconds(), colSyncCPU.Key: used, colPeak.Key: float64(peak) / mib}, nil
}

// changes is what one changed workload costs one proxy, in µs of CPU, when one comes
// after the other.
func (s subject) changes(ctx context.Context, world *crowd) (float64, error) {
	idle, err := s.still(ctx, across, time.Second)
	if err != nil {
		return 0, err
	}
	before, err := s.bed.ProxyCPU()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	stop := world.churn(ctx)
	wait(ctx, changes*changeEvery)
	if err := stop(); err != nil {
		return 0, err
	}
	after, err := s.bed.ProxyCPU()
	if err != nil {
		return 0, err
	}
	took := time.Since(began).Seconds()
	each := float64(len(s.bed.Nodes)) * took / changeEvery.Seconds()
	return 1e6 * (after - before - idle[colIdleCPU.Key]/1000*took) / each, nil
}

// churn changes a workload every changeEvery until stop is called.
func (c *crowd) churn(ctx context.Context) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		tick := time.NewTicker(changeEvery)
		defer tick.Stop()
		for n := int(time.Now().UnixNano() % 1e6); ; n++ {
			select {
			case <-ctx.Done():
				ended <- nil
				return
			case <-tick.C:
				if err := c.change(n); err != nil {
					ended <- err
					return
				}
			}
		}
	}()
	return func() error {
		cancel()
		return <-ended
	}
}

// crowdEnv has a proxy follow the control plane that the bench plays, beside the file
// with the bed's own pods.
func crowdEnv(world *crowd) []string {
	if world == nil {
		return nil
	}
	return []string{"XDS_ADDRESS=https://" + onehost.ControlPlaneAddr().String()}
}
