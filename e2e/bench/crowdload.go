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
	colOwn       = column{"own_us", "bench's own µs", "%.1f", false}
	colCalm      = column{"calm_p99_us", "p99 µs of 16", "%.0f", false}
	colControl   = column{"control_p99_us", "500/s to control", "%.0f", false}
	colControlBy = column{"control_ratio", "that is", "%.2f", false}
	colChurn     = column{"churn_p99_us", "500/s change", "%.0f", false}
	colChurnBy   = column{"churn_ratio", "that is", "%.2f", false}
)

const (
	changes = 500 // that the cost of one is taken from
	nobody  = ""
)

// turns is who is told of changes in a round's windows of traffic, one after the other:
// what a machine slowly gets better or worse at falls on all alike.
var turns = []string{nobody, controlType, addressType, addressType, controlType, nobody}

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
	r := &LoadReport{ID: crowdID(size), Title: crowdTitle(size), Columns: []column{colSync, colSyncCPU, colPeak, colRest, colChange, colOwn, colCalm, colControl, colControlBy, colChurn, colChurnBy}}
	var subjects []subject
	for _, p := range b.proxies() {
		if b.Subjects != nil && !b.Subjects.MatchString(p.Name) {
			continue
		}
		s := subject{name: p.Name}
		if b.Peer != nil && p.Name != b.Peer.Name {
			s.base = b.Peer.Name
		}
		p.crowd = size
		if s.bed, err = b.bed(ctx, p, 0); err != nil {
			return err
		}
		if err := s.bed.startControls(); err != nil {
			return err
		}
		subjects = append(subjects, s)
		r.Subjects = append(r.Subjects, &SubjectReport{Name: s.name, Base: s.base})
	}
	for range b.Rounds {
		for i, s := range subjects {
			f, err := b.crowded1(ctx, s)
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
func (b *bench) crowded1(ctx context.Context, s subject) (figures, error) {
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
	profiled := b.profile(ctx, load{id: crowdID(s.bed.proxy.crowd) + "-change"}, s)
	if err = errors.Join(s.changes(ctx, f), <-profiled); err != nil {
		return nil, err
	}
	return f, b.noticed(ctx, s, f)
}

// noticed puts into f what traffic notices of changes, and what it would if the proxies
// were not told of them.
func (b *bench) noticed(ctx context.Context, s subject, f figures) error {
	all := make(map[string][]float64)
	for _, kind := range turns {
		p99, err := b.window(ctx, s, kind)
		if err != nil {
			return err
		}
		all[kind] = append(all[kind], p99)
	}
	calm, control, churned := median(all[nobody]), median(all[controlType]), median(all[addressType])
	f[colCalm.Key], f[colControl.Key], f[colChurn.Key] = calm, control, churned
	f[colControlBy.Key], f[colChurnBy.Key] = control/calm, churned/calm
	return nil
}

// window is the p99 of traffic while those of a kind are told of changes.
func (b *bench) window(ctx context.Context, s subject, kind string) (float64, error) {
	stop := func() (t Told, err error) { return t, nil }
	if kind != nobody {
		var err error
		if stop, err = s.bed.churn(kind); err != nil {
			return 0, err
		}
	}
	f, err := messages(ctx, b.Config, s, across, ends.Plan{Op: ends.Echo, Conns: 16, Size: 1})
	_, stopErr := stop()
	return f[colP99.Key], errors.Join(err, stopErr)
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

// changes puts into f what one changed workload costs one proxy, in µs of CPU, when one
// comes after the other, and what it costs the bench to say so.
func (s subject) changes(ctx context.Context, f figures) error {
	idle, err := s.still(ctx, across, time.Second)
	if err != nil {
		return err
	}
	_, server := s.pods(across)
	before, err := s.cost(server)
	if err != nil {
		return err
	}
	stop, err := s.bed.churn(addressType)
	if err != nil {
		return err
	}
	wait(ctx, changes*changeEvery)
	told, err := stop()
	if err != nil {
		return err
	}
	after, err := s.cost(server)
	if err != nil {
		return err
	}
	if told.Changes == 0 {
		return errors.New("not a change was told")
	}
	each := float64(len(s.bed.Nodes)*told.Changes) / 1e6
	took := after.at.Sub(before.at).Seconds()
	f[colChange.Key] = (after.proxies - before.proxies - idle[colIdleCPU.Key]/1000*took) / each
	f[colOwn.Key] = told.CPU / each
	return nil
}

// crowdEnv has a proxy follow the control plane that the bench plays, beside the file
// with the bed's own pods.
func crowdEnv(size int) []string {
	if size == 0 {
		return nil
	}
	return []string{"XDS_ADDRESS=https://" + onehost.ControlPlaneAddr().String()}
}
