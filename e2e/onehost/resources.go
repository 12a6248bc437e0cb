package onehost

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Resources are what a program holds of the machine.
type Resources struct{ FDs, Threads, Goroutines int }

// ProxyResources counts what the node's proxy holds now.
func (n *Node) ProxyResources(ctx context.Context) (Resources, error) {
	r, err := n.proxy.resources()
	if err != nil {
		return r, err
	}
	var b bytes.Buffer
	if err := n.get(ctx, "127.0.0.1:15000", "/debug/pprof/goroutine?debug=1", &b); err != nil {
		return r, err
	}
	_, err = fmt.Sscanf(b.String(), "goroutine profile: total %d", &r.Goroutines)
	return r, err
}

// AgentResources counts what the node's agent holds now (its goroutines are not known).
func (n *Node) AgentResources() (Resources, error) { return n.agent.resources() }

func (p *process) resources() (Resources, error) {
	dir := filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid))
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return Resources{}, err
	}
	tasks, err := os.ReadDir(filepath.Join(dir, "task"))
	return Resources{FDs: len(fds), Threads: len(tasks)}, err
}

// Rules returns the pod's iptables of both families without counters and
// comments, so that two states can be compared.
func (p *Pod) Rules() (string, error) {
	var all strings.Builder
	for _, bin := range []string{"iptables-save", "ip6tables-save"} {
		out, err := output(p.NS, bin)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "#") {
				before, _, _ := strings.Cut(line, " [")
				all.WriteString(strings.TrimSuffix(before, "\n") + "\n")
			}
		}
	}
	return all.String(), nil
}

// ProxyCPU is the CPU time, in seconds, that all proxies have used so far.
func (m *Mesh) ProxyCPU() (float64, error) {
	var total float64
	for _, n := range m.Nodes {
		s, err := n.proxy.cpu()
		if err != nil {
			return 0, err
		}
		total += s
	}
	return total, nil
}

// ProxyPID is the process of the node's proxy.
func (n *Node) ProxyPID() int { return n.proxy.cmd.Process.Pid }

// ProxyMemory is the resident memory, in bytes, of each node's proxy.
func (m *Mesh) ProxyMemory() ([]int64, error) {
	var all []int64
	for _, n := range m.Nodes {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(n.proxy.cmd.Process.Pid), "status"))
		if err != nil {
			return nil, err
		}
		_, rest, _ := strings.Cut(string(b), "VmRSS:")
		var kib int64
		if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
			return nil, fmt.Errorf("VmRSS of the proxy on %s: %w", n.Name, err)
		}
		all = append(all, kib<<10)
	}
	return all, nil
}

// PeakMemory is the most, in bytes, that a process has had resident.
func PeakMemory(pid int) (int64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	var kib int64
	if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
		return 0, fmt.Errorf("VmHWM of process %d: %w", pid, err)
	}
	return kib << 10, nil
}

// cpu reads the process's CPU clock, to the nanosecond and with the threads
// that have ended. Its number is made of the process's (clock_getcpuclockid(3)).
func (p *process) cpu() (float64, error) { return CPU(p.cmd.Process.Pid) }

// CPU is the CPU time, in seconds, that a process has used so far.
func CPU(pid int) (float64, error) {
	const perProcess = 2 // CPUCLOCK_SCHED
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|perProcess), &t); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return float64(t.Nano()) / 1e9, nil
}
