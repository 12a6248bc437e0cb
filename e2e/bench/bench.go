package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// Config says what to measure.
type Config struct {
	Bins   string        // folder with the programs
	Peer   string        // another proxy's path; empty: none
	Rounds int           // how often each figure is taken
	Length time.Duration // of one measurement
	Idle   int           // idle connections for the memory figure
}

const prefix = "warren-bench"

// Run measures and prints. It removes all it made, also when ctx ends early.
func Run(ctx context.Context, c Config, out io.Writer) (err error) {
	if c.Rounds < 1 {
		return fmt.Errorf("-rounds %d: at least one", c.Rounds)
	}
	if c.Bins, err = filepath.Abs(c.Bins); err != nil {
		return err
	}
	ours, err := newMesh(ctx, c, prefix+"-a", "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.close()) }()
	subjects := []subject{ours.direct(), ours.plainTLS(), ours.through("warren")}
	if c.Peer != "" {
		peer, err := newMesh(ctx, c, prefix+"-b", c.Peer)
		if err != nil {
			return fmt.Errorf("the peer %s: %w", c.Peer, err)
		}
		defer func() { err = errors.Join(err, peer.close()) }()
		subjects = append(subjects, peer.through("peer"))
	}
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Fprintf(out, "%s, %d CPUs, load before: %s\nmedians of %d rounds of %s, least and most in parentheses; CPU is that of both proxies\n",
		runtime.Version(), runtime.NumCPU(), strings.TrimSpace(string(load)), c.Rounds, c.Length)
	for _, l := range loads(c.Length) {
		if err := measure(ctx, c, out, l, subjects); err != nil {
			return err
		}
	}
	if err := idle(ctx, c, out, subjects); err != nil {
		return err
	}
	return adds(ctx, out, ours)
}

// load is one kind of traffic.
type load struct {
	title string
	run   func(ctx context.Context, s subject) (figures, error)
	cells func(f []figures) []string
	head  []string
}

func loads(length time.Duration) []load {
	var all []load
	for _, n := range []int{1, 8, 64} {
		all = append(all, load{
			title: fmt.Sprintf("bulk, %d connections", n), head: []string{"GB/s", "CPU s/GB", "fairness"},
			run: func(ctx context.Context, s subject) (figures, error) { return bulk(ctx, s.dial, s.cpu, n, length) },
			cells: func(f []figures) []string {
				return []string{
					spread(f, "%.2f", func(f figures) float64 { return f.rate / 1e9 }),
					spread(f, "%.2f", func(f figures) float64 { return f.cpu }),
					spread(f, "%.2f", func(f figures) float64 { return f.fairness }),
				}
			},
		})
	}
	for _, size := range []int{1, 1024} {
		for _, n := range []int{1, 16, 64} {
			all = append(all, load{
				title: fmt.Sprintf("request/response, %d B, %d in flight", size, n), head: rateHead("requests/s"), cells: rateCells,
				run: func(ctx context.Context, s subject) (figures, error) {
					return requests(ctx, s.dial, s.cpu, n, size, length)
				},
			})
		}
	}
	return append(all, load{
		title: "new connections, 16 at once, warm tunnel", head: rateHead("connections/s"), cells: rateCells,
		run: func(ctx context.Context, s subject) (figures, error) {
			return connections(ctx, s.dial, s.cpu, 16, length)
		},
	})
}

func rateHead(unit string) []string { return []string{unit, "p50 µs", "p99 µs", "CPU µs each"} }

func rateCells(f []figures) []string {
	return []string{
		spread(f, "%.0f", func(f figures) float64 { return f.rate }),
		spread(f, "%.0f", func(f figures) float64 { return float64(f.p50.Microseconds()) }),
		spread(f, "%.0f", func(f figures) float64 { return float64(f.p99.Microseconds()) }),
		spread(f, "%.0f", func(f figures) float64 { return f.cpu * 1e6 }),
	}
}

// spread is the median with the least and the most.
func spread(all []figures, format string, of func(figures) float64) string {
	v := make([]float64, len(all))
	for i, f := range all {
		v[i] = of(f)
	}
	slices.Sort(v)
	return fmt.Sprintf(format+" ("+format+"–"+format+")", v[len(v)/2], v[0], v[len(v)-1])
}

// measure takes turns among the subjects, round by round.
func measure(ctx context.Context, c Config, out io.Writer, l load, subjects []subject) error {
	taken := make([][]figures, len(subjects))
	for range c.Rounds {
		for i, s := range subjects {
			f, err := l.run(ctx, s)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", l.title, s.name, err)
			}
			taken[i] = append(taken[i], f)
		}
	}
	fmt.Fprintf(out, "\n%-44s", l.title)
	for _, h := range l.head {
		fmt.Fprintf(out, " %26s", h)
	}
	fmt.Fprintln(out)
	for i, s := range subjects {
		fmt.Fprintf(out, "  %-42s", s.name)
		for _, cell := range l.cells(taken[i]) {
			fmt.Fprintf(out, " %26s", cell)
		}
		fmt.Fprintln(out)
	}
	return nil
}

// idle opens many connections, leaves them alone and reads what they cost.
func idle(ctx context.Context, c Config, out io.Writer, subjects []subject) error {
	if c.Idle == 0 {
		return nil
	}
	fmt.Fprintf(out, "\n%-44s %26s\n", fmt.Sprintf("memory, %d idle connections", c.Idle), "resident bytes each, client's node / server's node")
	for _, s := range subjects {
		if s.mesh == nil {
			continue
		}
		before, err := s.mesh.ProxyMemory()
		if err != nil {
			return err
		}
		open, err := openIdle(ctx, s.dial, c.Idle)
		if err != nil {
			return fmt.Errorf("idle connections, %s: %w", s.name, err)
		}
		after, err := s.mesh.ProxyMemory()
		closeAll(open)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "  %-42s %d / %d\n", s.name, (after[0]-before[0])/int64(c.Idle), (after[1]-before[1])/int64(c.Idle))
	}
	return nil
}

// adds creates pods and prints what our plugin added to each ADD.
func adds(ctx context.Context, out io.Writer, m *mesh) error {
	const pods = 20
	n := m.Nodes[0]
	fmt.Fprintf(out, "\n%-44s %26s\n", "CNI ADD, ms of each plugin", "median (least–most)")
	for _, ns := range []string{meshNS, plainNS} {
		clear(n.AddTimes)
		for i := range pods {
			p, err := n.AddPod(ctx, onehost.PodSpec{Namespace: ns, Name: fmt.Sprintf("add-%d", i), ServiceAccount: "add"})
			if err != nil {
				return err
			}
			if err := p.Delete(ctx); err != nil {
				return err
			}
		}
		for _, plugin := range []string{"bridge", "warren-cni"} {
			t := n.AddTimes[plugin]
			slices.Sort(t)
			if len(t) == 0 {
				return fmt.Errorf("no ADD of %s was seen", plugin)
			}
			ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
			fmt.Fprintf(out, "  %-42s %.1f (%.1f–%.1f)\n", plugin+", pod in namespace "+ns, ms(t[len(t)/2]), ms(t[0]), ms(t[len(t)-1]))
		}
	}
	return nil
}
