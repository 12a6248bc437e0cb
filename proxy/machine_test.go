package proxy

import (
	"context"
	"log/slog"
	"math"
	"runtime/debug"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

func TestReadLimits(t *testing.T) {
	type files = map[string]string
	const none = "9223372036854771712"
	for _, tt := range []struct {
		name  string
		files files
		want  limits
	}{
		{"nothing is there", nil, limits{}},
		{"version 2, in its own namespace", files{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "134217728\n", "sys/fs/cgroup/memory.high": "max\n", "sys/fs/cgroup/cpu.max": "150000 100000\n",
		}, limits{128 << 20, 1.5}},
		{"version 2, no limits", files{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/cpu.max": "max 100000\n",
		}, limits{}},
		{"version 2, the lowest on the way up", files{
			"proc/self/cgroup":                  "0::/kubepods/pod1/c1\n",
			"sys/fs/cgroup/memory.max":          "9999999999\n",
			"sys/fs/cgroup/kubepods/cpu.max":    "max 100000\n",
			"sys/fs/cgroup/kubepods/pod1/x":     "",
			"sys/fs/cgroup/kubepods/memory.max": "1073741824\n", "sys/fs/cgroup/kubepods/pod1/memory.max": "536870912\n",
			"sys/fs/cgroup/kubepods/pod1/cpu.max": "50000 100000\n", "sys/fs/cgroup/kubepods/pod1/c1/memory.max": "max\n",
		}, limits{512 << 20, 0.5}},
		{"version 2, slowed down before the limit", files{
			"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "2000000\n", "sys/fs/cgroup/a/memory.high": "1000000\n",
		}, limits{1000000, 0}},
		{"version 2, moved out of its namespace", files{
			"proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/memory.max": "1000000\n",
		}, limits{1000000, 0}},
		{"version 1, the container's own mounts", files{
			"proc/self/cgroup":                                "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n1:name=systemd:/docker/1\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":      "134217728\n",
			"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us":      "200000\n",
			"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us":     "100000\n",
			"sys/fs/cgroup/memory/memory.soft_limit_in_bytes": "1\n",
		}, limits{128 << 20, 2}},
		{"version 1, the host's mounts", files{
			"proc/self/cgroup":                               "3:cpu:/a/b\n4:memory:/a/b\n0::/a/b\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":     none,
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes":   none,
			"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "1000000\n",
			"sys/fs/cgroup/cpu/cpu.cfs_quota_us":             "-1\n",
			"sys/fs/cgroup/cpu/cpu.cfs_period_us":            "100000\n",
			"sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us":         "25000\n",
			"sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us":        "100000\n",
		}, limits{1000000, 0.25}},
		{"nonsense", files{
			"proc/self/cgroup": "\n::\n0\n0::/a\n", "sys/fs/cgroup/a/memory.max": "lots\n", "sys/fs/cgroup/a/cpu.max": "1\n", "sys/fs/cgroup/memory.max": "0\n",
		}, limits{}},
	} {
		root := fstest.MapFS{}
		for name, text := range tt.files {
			root[name] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := readLimits(root); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestAllot(t *testing.T) {
	const limit = 1000 << 20
	big := machine{cpus: 96, goThreads: 96}
	limited := machine{cpus: 96, goThreads: 4, limits: limits{memory: limit, cpus: 3.5}}
	for _, tt := range []struct {
		name string
		c    Config
		m    machine
		want allotment
	}{
		{"a big node", Config{}, big, allotment{threads: 24, setThreads: true, threadsBy: "a quarter of the CPUs", memoryBy: "no limit"}},
		{"a small node", Config{}, machine{cpus: 4, goThreads: 4}, allotment{threads: 2, setThreads: true, threadsBy: "a quarter of the CPUs", memoryBy: "no limit"}},
		{"one CPU", Config{}, machine{cpus: 1, goThreads: 1}, allotment{threads: 1, setThreads: true, threadsBy: "a quarter of the CPUs", memoryBy: "no limit"}},
		{"a request", Config{CPU: CPUs{Request: 30}}, big, allotment{threads: 30, setThreads: true, threadsBy: "a quarter of the CPUs", memoryBy: "no limit"}},
		{"fewer CPUs said", Config{CPU: CPUs{Count: 16}}, big, allotment{threads: 4, setThreads: true, threadsBy: "a quarter of the CPUs", memoryBy: "no limit"}},
		{"a limit said", Config{CPU: CPUs{Limit: 6, Request: 2, Count: 16}}, limited, allotment{
			threads: 6, setThreads: true, threadsBy: "ZTUNNEL_RESOURCE_CPU_LIMIT", memory: limit / 10 * 9, setMemory: true, memoryBy: "cgroup",
		}},
		{"the cgroup's limit", Config{CPU: CPUs{Request: 2}}, limited, allotment{
			threads: 4, threadsBy: "cgroup", memory: limit / 10 * 9, setMemory: true, memoryBy: "cgroup",
		}},
		{"said outright", Config{Threads: 5, CPU: CPUs{Limit: 6}}, limited, allotment{
			threads: 5, setThreads: true, threadsBy: "configuration", memory: limit / 10 * 9, setMemory: true, memoryBy: "cgroup",
		}},
		{"said to Go", Config{CPU: CPUs{Limit: 6}}, machine{cpus: 96, goThreads: 7, goMaxProcs: true, memory: 77, limits: limits{memory: limit}}, allotment{
			threads: 7, threadsBy: "GOMAXPROCS", memory: 77, memoryBy: "GOMEMLIMIT",
		}},
	} {
		if d := cmp.Diff(tt.want, allot(tt.c, tt.m), cmp.AllowUnexported(allotment{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
	for threads, want := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 24: 12} {
		if got := (allotment{threads: threads}).handshakes(); got != want {
			t.Errorf("%d threads: %d handshakes, want %d", threads, got, want)
		}
	}
}

func TestParseCPUs(t *testing.T) {
	for s, want := range map[string]int{"2": 2, "1.5": 2, "500m": 1, "0": 0, "2500m": 3, "1e1": 10} {
		if got, err := parseCPUs(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"m", "-1", "x", "NaN", "1e9", "Inf", "2k", " 1"} {
		if n, err := parseCPUs(s); err == nil {
			t.Errorf("%s: %d", s, n)
		}
	}
}

func TestWindowsFollowTheMemoryLeft(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		name string
		m    memory
		want int64
	}{
		{"no limit", memory{limit: math.MaxInt64, total: 1 << 40}, windowBudget},
		{"plenty", memory{limit: 8 << 30, total: 100 * mib}, windowBudget},
		{"half used", memory{limit: 200 * mib, total: 100 * mib}, 50 * mib},
		{"garbage is not in use", memory{limit: 200 * mib, total: 180 * mib, objects: 150 * mib, live: 50 * mib}, 60 * mib},
		{"what is given back is not in use", memory{limit: 200 * mib, total: 180 * mib, released: 60 * mib, free: 20 * mib}, 50 * mib},
		{"live of an earlier time", memory{limit: 200 * mib, total: 100 * mib, objects: 10 * mib, live: 50 * mib}, 50 * mib},
		{"short", memory{limit: 200 * mib, total: 180 * mib}, 0},
		{"over", memory{limit: 200 * mib, total: 300 * mib}, 0},
		{"figures that do not fit", memory{limit: 200 * mib, total: 1, free: 2}, 100 * mib},
	} {
		if got := tt.m.windows(); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// TestReadMemory: the runtime knows every figure by the name we ask for.
func TestReadMemory(t *testing.T) {
	m := newMemoryReader().read()
	if m.limit == 0 || m.total == 0 || m.objects == 0 || m.need() == 0 || m.need() > m.total {
		t.Errorf("%+v", m)
	}
}

// TestFitWindows: the budget follows, and the log says when memory gets short.
func TestFitWindows(t *testing.T) {
	l, out := testLogs(t, LogConfig{Filter: "info"})
	s := &Server{log: l.scope("proxy"), budget: hbone.NewBudget(1)}
	short := false
	for _, need := range []uint64{50, 95, 99, 50, 40} {
		short = s.fitWindows(memory{limit: 100, total: need}, short)
		if short != (need > 90) || s.budget.Limit() != (memory{limit: 100, total: need}).windows() {
			t.Errorf("need %d: short %v, budget %d", need, short, s.budget.Limit())
		}
	}
	l.sink.Close()
	if got := linesWith(out.String(), ""); len(got) != 2 {
		t.Errorf("%q", got)
	}
}

func TestEnvironCPUs(t *testing.T) {
	for _, tt := range []struct {
		env  []string
		want Config // Threads and CPU of it
	}{
		{[]string{"ZTUNNEL_RESOURCE_CPU_LIMIT=1500m", "ZTUNNEL_RESOURCE_CPU_REQUEST=0.2"}, Config{CPU: CPUs{Limit: 2, Request: 1}}},
		{[]string{"ZTUNNEL_CPU_LIMIT=9", "ZTUNNEL_WORKER_THREADS=50%"}, Config{Threads: 5, CPU: CPUs{Count: 9}}},
		{[]string{"ZTUNNEL_CPU_LIMIT=9", "ZTUNNEL_WORKER_THREADS=0"}, Config{Threads: 9, CPU: CPUs{Count: 9}}},
		{[]string{"ZTUNNEL_RESOURCE_CPU_LIMIT=", "PROXY_CONFIG={concurrency: 3}"}, Config{Threads: 3}},
	} {
		c, err := FromEnviron(tt.env)
		if err != nil || c.Threads != tt.want.Threads || c.CPU != tt.want.CPU {
			t.Errorf("%v: %d %+v, %v", tt.env, c.Threads, c.CPU, err)
		}
	}
	if _, err := FromEnviron([]string{"ZTUNNEL_RESOURCE_CPU_LIMIT=much"}); err == nil {
		t.Error("a limit that is no number is accepted")
	}
}

// A large mesh is collected less often, and one that is not known yet still less, unless
// the user says how often.
func TestGCPercent(t *testing.T) {
	was := debug.SetGCPercent(77)
	defer debug.SetGCPercent(was)
	now := func() int { return debug.SetGCPercent(77) }
	t.Setenv("GOGC", "")
	for n, want := range map[int]int{unknownMesh: gcPercentStart, 0: gcPercent, largeMesh - 1: gcPercent, largeMesh: gcPercentLarge} {
		if setGCPercent(gcPercentFor(n)); now() != want {
			t.Errorf("%d workloads: not %d%%", n, want)
		}
	}
	t.Setenv("GOGC", "30")
	setGCPercent(gcPercentLarge)
	if n := now(); n != 77 {
		t.Errorf("the user has said, and it is %d%% now", n)
	}
}

// TestGCFollowsTheMesh: once the mesh is known, the collector is told, though nothing changes
// any more.
func TestGCFollowsTheMesh(t *testing.T) {
	was := debug.SetGCPercent(77)
	defer debug.SetGCPercent(was)
	t.Setenv("GOGC", "")
	s := &Server{store: workload.NewStore(), log: slog.New(slog.DiscardHandler), program: true, tracked: track.New(1, 1)}
	s.pods = &pods{s: s}
	known := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.follow(ctx, known) })
	defer running.Wait()
	defer cancel()
	until := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			got := debug.SetGCPercent(77)
			if debug.SetGCPercent(got); got == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("collects at %d%%, want %d%%", got, want)
			}
		}
	}
	s.store.Apply(workload.Batch{Workloads: []*workload.Workload{{UID: "a", Name: "a", Namespace: "ns"}}})
	close(known)
	until(gcPercent)
}
