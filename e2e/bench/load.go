package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-mesh/warren/e2e/bench/ends"
)

// column is one figure of a table.
type column struct {
	Key    string
	Head   string
	Format string
	More   bool // more is better
}

// judged says whether a column tells of the subjects, not of what is beside them.
func (c column) judged() bool { return c != colOther && c != colEnds && c != colOwn }

var (
	colGBs      = column{"gb_per_s", "GB/s", "%.3f", true}
	colCPUGB    = column{"cpu_s_per_gb", "CPU s/GB", "%.3f", false}
	colFair     = column{"fairness", "fairness", "%.2f", true}
	colRate     = column{"per_s", "/s", "%.0f", true}
	colP50      = column{"p50_us", "p50 µs", "%.0f", false}
	colP99      = column{"p99_us", "p99 µs", "%.0f", false}
	colP999     = column{"p999_us", "p99.9 µs", "%.0f", false}
	colCPUEach  = column{"cpu_us_each", "CPU µs each", "%.1f", false}
	colSetup    = column{"setup_s", "set-up s", "%.2f", false}
	colOutBytes = column{"bytes_each_out", "B each, client's node", "%.0f", false}
	colInBytes  = column{"bytes_each_in", "B each, server's node", "%.0f", false}
	colIdleCPU  = column{"idle_cpu_ms_per_s", "idle CPU ms/s", "%.2f", false}
	colLeft     = column{"left_mib", "MiB left after", "%.1f", false}
	colResident = column{"resident_mib", "MiB a proxy", "%.1f", false}
	colReady    = column{"ready_s", "ready after s", "%.2f", false}
	colOther    = column{"other_cores", "other load", "%.2f", false}
	colEnds     = column{"ends_cores", "both ends, cores", "%.2f", false}
)

// load is one kind of traffic.
type load struct {
	id, title string
	way       way
	columns   []column
	crowd     bool // compares beds of few and of many pods
	noTLS     bool // plain TLS has no such thing
	rounds    int  // at most; 0: as many as asked for
	run       func(ctx context.Context, c Config, s subject) (figures, error)
}

func loads(c Config) []load {
	var all []load
	for _, w := range []way{across, oneNode, outward, inward} {
		all = append(all, ofWay(c, w)...)
	}
	for _, l := range slices.Clone(all) {
		switch l.id {
		case "hbone/bulk-up/8", "hbone/rr-1/16", "hbone/rr-1/64", "hbone/new-warm/16":
			l.id, l.title, l.crowd, l.noTLS = "pods/"+l.id[len("hbone/"):], l.title+", one pod busy of few and of many", true, true
			all = append(all, l)
		}
	}
	return append(all, load{
		id: "pods/standing", title: "standing still with few pods and with many", way: across, crowd: true, noTLS: true, rounds: 3,
		columns: []column{colReady, colResident, colIdleCPU}, run: standing,
	})
}

func ofWay(c Config, w way) []load {
	var all []load
	for _, op := range []ends.Op{ends.Up, ends.Down} {
		name := map[ends.Op]string{ends.Up: "up", ends.Down: "down"}[op]
		for _, n := range []int{1, 8, 64} {
			all = append(all, load{
				id: fmt.Sprintf("%s/bulk-%s/%d", string(w), name, n), title: fmt.Sprintf("%s: bulk %s, %s", w, name, count(n, "connection")), way: w,
				columns: []column{colGBs, colCPUGB, colFair},
				run: func(ctx context.Context, c Config, s subject) (figures, error) {
					return bulk(ctx, c, s, w, ends.Plan{Op: op, Conns: n})
				},
			})
		}
	}
	for _, size := range []int{1, 1024} {
		for _, n := range []int{1, 16, 64} {
			all = append(all, load{
				id: fmt.Sprintf("%s/rr-%d/%d", string(w), size, n), title: fmt.Sprintf("%s: request and response of %d B, %d in flight", w, size, n), way: w,
				columns: []column{colRate, colP50, colP99, colP999, colCPUEach},
				run: func(ctx context.Context, c Config, s subject) (figures, error) {
					return messages(ctx, c, s, w, ends.Plan{Op: ends.Echo, Conns: n, Size: size})
				},
			})
		}
	}
	all = append(all, load{
		id: string(w) + "/rr-1-beside/63", title: fmt.Sprintf("%s: request and response of 1 B, 1 in flight, beside 63 connections of bulk", w), way: w,
		noTLS:   true,
		columns: []column{colRate, colP50, colP99, colP999, colGBs},
		run:     func(ctx context.Context, c Config, s subject) (figures, error) { return beside(ctx, c, s, w, 63) },
	})
	conn := []column{colRate, colP50, colP99, colCPUEach}
	all = append(all, load{
		id: string(w) + "/new-warm/16", title: fmt.Sprintf("%s: new connections, 16 at once", w), way: w, columns: conn,
		run: func(ctx context.Context, c Config, s subject) (figures, error) {
			return messages(ctx, c, s, w, ends.Plan{Op: ends.Echo, Conns: 16, Size: 1, Fresh: true})
		},
	})
	if w == across {
		all[len(all)-1].title += ", through a warm tunnel"
		all = append(all, load{
			id: string(w) + "/new-cold/8", title: fmt.Sprintf("%s: new connections, 8 at once, a new tunnel for each", w), way: w, columns: conn, noTLS: true,
			run: func(ctx context.Context, c Config, s subject) (figures, error) {
				p := ends.Plan{Op: ends.Echo, Conns: 8, Size: 1, Fresh: true}
				if s.kind == proxied {
					p.Dst = func() netip.AddrPort { return netip.AddrPortFrom(s.bed.cold.take(), plainPort) }
				}
				return messages(ctx, c, s, w, p)
			},
		})
	}
	many := idleOn(w, c.Idle)
	return append(all, load{
		id: string(w) + "/idle", title: fmt.Sprintf("%s: %s", w, count(many, "idle connection")), way: w, noTLS: true, rounds: 3,
		columns: []column{colSetup, colOutBytes, colInBytes, colIdleCPU, colLeft},
		run:     func(ctx context.Context, c Config, s subject) (figures, error) { return idle(ctx, c, s, w, many) },
	})
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func bulk(ctx context.Context, c Config, s subject, w way, p ends.Plan) (figures, error) {
	p.Warm, p.Length = c.Warm, c.Length
	r, used, err := s.run(ctx, w, p)
	if err != nil {
		return nil, err
	}
	var total uint64
	for _, n := range r.Bytes {
		total += n
	}
	if total == 0 {
		return nil, errors.New("not a byte came through")
	}
	f := figures{
		colGBs.Key:   float64(total) / 1e9 / r.Took.Seconds(),
		colCPUGB.Key: (used[1].proxies - used[0].proxies) / (float64(total) / 1e9),
		colFair.Key:  float64(slices.Min(r.Bytes)) / float64(slices.Max(r.Bytes)),
	}
	f.setOther(used[0], used[1])
	return f, nil
}

func messages(ctx context.Context, c Config, s subject, w way, p ends.Plan) (figures, error) {
	p.Warm, p.Length = c.Warm, c.Length
	r, used, err := s.run(ctx, w, p)
	if err != nil {
		return nil, err
	}
	n := float64(r.Times.N())
	if n == 0 {
		return nil, errors.New("not a message came back")
	}
	us := func(q float64) float64 { return float64(r.Times.Quantile(q)) / float64(time.Microsecond) }
	f := figures{
		colRate.Key: n / r.Took.Seconds(), colP50.Key: us(0.5), colP99.Key: us(0.99), colP999.Key: us(0.999),
		colCPUEach.Key: (used[1].proxies - used[0].proxies) / n * 1e6,
	}
	f.setOther(used[0], used[1])
	return f, nil
}

// beside is a small request after another while n connections carry bulk.
func beside(ctx context.Context, c Config, s subject, w way, n int) (figures, error) {
	bulkCtx, stop := context.WithCancel(ctx)
	plan := s.place(w, ends.Plan{Op: ends.Up, Conns: n, Warm: c.Warm, Length: time.Hour})
	ended := make(chan error, 1)
	go func() {
		_, _, err := s.play(bulkCtx, w, plan)
		ended <- err
	}()
	wait(ctx, max(c.Warm, settle)) // until bulk is under way
	before, began := plan.Board.Sum(plan.Slot, n), time.Now()
	f, err := messages(ctx, c, s, w, ends.Plan{Op: ends.Echo, Conns: 1, Size: 1})
	moved, took := plan.Board.Sum(plan.Slot, n)-before, time.Since(began)
	stop()
	if bulkErr := <-ended; !errors.Is(bulkErr, context.Canceled) {
		err = errors.Join(err, fmt.Errorf("bulk: %w", bulkErr))
	}
	if err != nil {
		return nil, err
	}
	f[colGBs.Key] = float64(moved) / 1e9 / took.Seconds()
	return f, nil
}

const (
	mib    = 1 << 20
	settle = time.Second // until what was begun before has come to rest
)

// idleOn is how many idle connections a way can have. Where one proxy has both
// ends of each, it may not be allowed enough descriptors; a third of what it is
// allowed leaves it some for other things, such as pipes.
func idleOn(w way, want int) int {
	if w == across {
		return want
	}
	return min(want, maxFDs()/3)
}

// idle opens many connections on proxies that have done little before, leaves
// them alone, and reads what they cost.
func idle(ctx context.Context, c Config, s subject, w way, many int) (figures, error) {
	if s.kind == proxied {
		if _, err := s.bed.restart(ctx); err != nil {
			return nil, err
		}
		if err := s.touch(ctx, w); err != nil {
			return nil, err
		}
		// What a proxy needs for its first connections is no part of the figure.
		r, _, err := s.run(ctx, w, ends.Plan{Op: ends.Echo, Conns: 32, Size: 1, Hold: min(200, many)})
		if err != nil {
			return nil, err
		}
		r.Held.Close()
		wait(ctx, min(settle, c.Length))
	}
	before, err := s.memory()
	if err != nil {
		return nil, err
	}
	r, _, err := s.run(ctx, w, ends.Plan{Op: ends.Echo, Conns: min(32, many), Size: 1, Hold: many})
	if err != nil {
		return nil, err
	}
	defer r.Held.Close()
	wait(ctx, min(settle, c.Length))
	open, err := s.memory()
	if err != nil {
		return nil, err
	}
	f, err := s.still(ctx, w, c.Length)
	if err != nil {
		return nil, err
	}
	if alive := r.Held.Alive(); alive != many {
		return nil, fmt.Errorf("of %d idle connections %d are left", many, alive)
	}
	r.Held.Close()
	wait(ctx, min(settle, c.Length))
	after, err := s.memory()
	if err != nil {
		return nil, err
	}
	each := float64(many)
	f[colSetup.Key], f[colOutBytes.Key], f[colInBytes.Key] = r.Took.Seconds(), float64(open[0]-before[0])/each, float64(open[1]-before[1])/each
	f[colLeft.Key] = float64(after[0]-before[0]+after[1]-before[1]) / mib
	return f, ctx.Err()
}

// memory is what each node's proxy has resident; zero without one.
func (s subject) memory() ([]int64, error) {
	if s.kind != proxied {
		return make([]int64, 2), nil
	}
	return s.bed.ProxyMemory()
}

// still is what the proxies use while nothing happens.
func (s subject) still(ctx context.Context, w way, length time.Duration) (figures, error) {
	_, server := s.pods(w)
	a, err := s.cost(server)
	if err != nil {
		return nil, err
	}
	wait(ctx, length)
	b, err := s.cost(server)
	if err != nil {
		return nil, err
	}
	f := figures{colIdleCPU.Key: 1000 * (b.proxies - a.proxies) / b.at.Sub(a.at).Seconds()}
	f.setOther(a, b)
	return f, nil
}

func standing(ctx context.Context, c Config, s subject) (figures, error) {
	ready, err := s.bed.restart(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.touch(ctx, across); err != nil {
		return nil, err
	}
	wait(ctx, min(settle, c.Length))
	f, err := s.still(ctx, across, c.Length)
	if err != nil {
		return nil, err
	}
	m, err := s.memory()
	if err != nil {
		return nil, err
	}
	f[colReady.Key], f[colResident.Key] = ready.Seconds(), float64(m[0]+m[1])/2/mib
	return f, nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
