package onehost

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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

// clockTick is USER_HZ, which Linux has fixed at 100 for what /proc reports.
const clockTick = 100

// cpu reads utime and stime, fields 14 and 15 of /proc/pid/stat (proc(5)).
func (p *process) cpu() (float64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "stat"))
	if err != nil {
		return 0, err
	}
	// The name in field 2 may hold spaces; what follows its parenthesis does not.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s: /proc/stat has %d fields", p.name, len(fields))
	}
	var ticks float64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", p.name, err)
		}
		ticks += n
	}
	return ticks / clockTick, nil
}
