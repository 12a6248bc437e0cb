package proxy

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

// CPUs is what the container's owner says of its CPUs, rounded up; zero: nothing.
type CPUs struct {
	Limit, Request int // of the container
	Count          int // of the machine, or what counts as that
}

// machine is what is found about the place that the proxy runs in.
type machine struct {
	cpus       int
	limits     limits
	goMaxProcs bool  // the user tells Go's scheduler by GOMAXPROCS
	goThreads  int   // what Go has chosen, or was told
	memory     int64 // Go's memory limit by GOMEMLIMIT; 0: none
}

func findMachine() machine {
	m := machine{
		cpus: runtime.NumCPU(), limits: readLimits(os.DirFS("/")),
		goMaxProcs: os.Getenv("GOMAXPROCS") != "", goThreads: runtime.GOMAXPROCS(0),
	}
	if n := debug.SetMemoryLimit(-1); n < math.MaxInt64 {
		m.memory = n
	}
	return m
}

// allotment is the proxy's share of the machine, and why it is that.
type allotment struct {
	threads             int
	setThreads          bool // Go would choose another number, or is to be told
	memory              int64
	setMemory           bool
	threadsBy, memoryBy string
}

// memoryPart is how much of the container's memory Go may fill: the kernel's
// buffers of our sockets, which may be many, count as ours too.
const memoryPart = 0.9

// allot decides. Threads are what was asked for; else what Go was told, or the
// limit, whoever says it; else a quarter of the machine, whose rest is for the
// pods, but two at least. A limit that is the cgroup's is left to Go, which
// follows its changes.
func allot(c Config, m machine) allotment {
	a := allotment{memory: m.memory, memoryBy: "GOMEMLIMIT"}
	if a.memory == 0 {
		a.memoryBy = "no limit"
		if n := m.limits.memory; n > 0 {
			a.memory, a.setMemory, a.memoryBy = int64(float64(n)*memoryPart), true, "cgroup"
		}
	}
	switch {
	case c.Threads > 0:
		a.threads, a.setThreads, a.threadsBy = c.Threads, true, "configuration"
	case m.goMaxProcs:
		a.threads, a.threadsBy = m.goThreads, "GOMAXPROCS"
	case c.CPU.Limit > 0:
		a.threads, a.setThreads, a.threadsBy = max(c.CPU.Limit, c.CPU.Request), true, "ZTUNNEL_RESOURCE_CPU_LIMIT"
	case m.limits.cpus > 0:
		a.threads, a.threadsBy = m.goThreads, "cgroup"
	default:
		n := max((c.cpus(m)+3)/4, c.CPU.Request, 2)
		a.threads, a.setThreads, a.threadsBy = min(n, m.cpus), true, "a quarter of the CPUs"
	}
	return a
}

// cpus is how many CPUs there are as far as parts of them go.
func (c Config) cpus(m machine) int {
	if c.CPU.Count > 0 {
		return c.CPU.Count
	}
	return m.cpus
}

// gcPercent is Go's GOGC, where the user does not say: what is garbage before it is
// collected is resident like what connections keep. Carrying bytes makes none;
// only making connections pays for collecting more often.
const gcPercent = 50

// A large mesh is memory that does not come and go, and to look through all of it costs as
// much as a tenth of a second of a CPU, which traffic notices: it is done half as often.
// Before the mesh is known nearly all that is made stays, and nobody is served until it
// is: the heap grows from nothing, and would be looked through at each step.
const (
	gcPercentLarge = 100
	largeMesh      = 20_000 // workloads
	gcPercentStart = 400    // the memory limit holds, whatever this is
)

// unknownMesh is a number of workloads.
const unknownMesh = -1

// gcPercentFor is what suits a mesh of so many workloads.
func gcPercentFor(workloads int) int {
	switch {
	case workloads == unknownMesh:
		return gcPercentStart
	case workloads >= largeMesh:
		return gcPercentLarge
	}
	return gcPercent
}

// setGCPercent tells the collector, unless the user does.
func setGCPercent(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// handshakes is how many of the threads TLS handshakes may keep busy.
func (a allotment) handshakes() int { return max(1, a.threads/2) }

// take makes the allotment the process's. It is for the program: tests have
// several proxies in a process.
func (a allotment) take(log *slog.Logger) {
	if a.setThreads {
		runtime.GOMAXPROCS(a.threads)
	}
	if a.setMemory {
		debug.SetMemoryLimit(a.memory)
	}
	setGCPercent(gcPercentFor(unknownMesh))
	log.Info("share of the machine", "threads", runtime.GOMAXPROCS(0), "threads.by", a.threadsBy,
		"memory", a.memory, "memory.by", a.memoryBy, "handshakes", a.handshakes())
}

// parseCPUs reads a Kubernetes quantity of CPUs, and rounds it up.
func parseCPUs(s string) (int, error) {
	number, milli := strings.CutSuffix(s, "m")
	n, err := strconv.ParseFloat(number, 64)
	if milli {
		n /= 1000
	}
	if err != nil || !(n >= 0 && n <= maxCPUs) {
		return 0, fmt.Errorf("%q is not a number of CPUs like 2, 1.5 or 500m, up to %d", s, maxCPUs)
	}
	return int(math.Ceil(n)), nil
}

// maxCPUs is more than any machine has.
const maxCPUs = 1 << 16
