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
