package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/install"
	"github.com/warren-mesh/warren/nodeagent/probe"
)

// host is what the agent has on the node outside of pods. Its fields are nil where
// that is not wanted.
type host struct {
	install *install.Installer
	probe   *probe.Probe
	ns      *netns.NS // the host's, for probe

	mu       sync.Mutex
	findings []probe.Finding // of the last self-test
	err      error           // why the rules for probes could not be made to begin with
}

// joinHost makes the parts that work on the node.
func (a *Agent) joinHost() error {
	a.host = &host{}
	if a.cfg.InstallCNI {
		in, err := install.New(a.cfg.CNI.installer(&a.cfg, a.log))
		if err != nil {
			return fmt.Errorf("nodeagent: %w", err)
		}
		a.host.install = in
		a.metrics.registry.MustRegister(in.Collector())
	}
	if a.cfg.probesFor() == ProbesOff {
		return nil
	}
	ns, err := hostNS(a.proc)
	if err != nil {
		return fmt.Errorf("nodeagent: the host's network, for kubelet's probes: %w", err)
	}
	a.closers = append(a.closers, ns.Close)
	p, err := probe.New(probe.Config{Limit: a.cfg.probesFor(), NS: ns, Proc: a.proc, Log: a.log})
	if err != nil {
		return err
	}
	a.closers = append(a.closers, p.Close)
	a.host.ns, a.host.probe = ns, p
	return nil
}

// hostNS opens the host's network namespace: the agent's own, if it has the host's
// network, or that of the host's first process.
func hostNS(proc string) (*netns.NS, error) {
	ns, err := netns.Open(filepath.Join(proc, "1/ns/net"))
	if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
		return netns.Current()
	}
	return ns, err
}

// procOf is where the host's /proc is seen: below the host's root, or at the agent's
// own place, where it has the host's processes.
func procOf(hostRoot string) string {
	if proc := filepath.Join(hostRoot, "proc"); hostRoot != "/" {
		if _, err := os.Stat(filepath.Join(proc, "1")); err == nil {
			return proc
		}
	}
	return "/proc"
}

// probes is for enroll; nil without.
func (h *host) probes() enroll.Probes {
	if h.probe == nil {
		return nil
	}
	return h.probe
}

// begin makes the host's rules those of the pods that an earlier agent left.
func (h *host) begin(ctx context.Context, e *enroll.Enroller) {
	if h.probe == nil {
		return
	}
	err := h.probe.Sync(ctx, e.Probed())
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
}

const (
	// selfTestAgain is the time between looks at whether this node breaks kubelet's path.
	selfTestAgain = 10 * time.Minute
	selfTestPods  = 2 // that are tried
)

// run adds what works on the node to a group.
func (h *host) run(ctx context.Context, group *errgroup.Group, a *Agent) {
	if h.install != nil {
		group.Go(func() error { return h.install.Run(ctx) })
	}
	if h.probe == nil {
		return
	}
	group.Go(func() error {
		if err := h.probe.Run(ctx); ctx.Err() == nil {
			return err
		}
		return nil
	})
	group.Go(func() error {
		for {
			h.selfTest(ctx, a)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(selfTestAgain):
			}
		}
	})
}

func (h *host) selfTest(ctx context.Context, a *Agent) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var targets []probe.Target
	for _, s := range a.enroll.Sample(selfTestPods) {
		defer s.NS.Close()
		targets = append(targets, probe.Target{Name: "pod " + s.Pod.String(), NS: s.NS, Addrs: s.IPs})
	}
	found := h.probe.SelfTest(ctx, targets...)
	h.mu.Lock()
	h.findings = found
	h.mu.Unlock()
	for _, f := range found {
		a.log.Warn("kubelet's probes: self-test", "finding", f.String())
	}
}

// remove takes everything away from the node.
func (h *host) remove(ctx context.Context) error {
	if h.probe == nil {
		return nil
	}
	return h.probe.Remove(ctx)
}

// istioChained is the network configuration by which runtimes run Istio's plugin, empty
// if none does or nobody has looked, and whether behind ours.
func (h *host) istioChained() (file string, follows bool) {
	if h.install == nil {
		return "", false
	}
	s := h.install.State()
	return s.Istio, s.IstioFollows
}

// parts are the words for the status; empty where there is nothing.
func (h *host) parts() (plugin, probes Part) {
	if h.install != nil {
		s := h.install.State()
		plugin = Part{Healthy, s.String()}
		if !s.OK() {
			plugin.State = Degraded
		}
	}
	if h.probe == nil {
		return plugin, probes
	}
	s := h.probe.State()
	probes = Part{Healthy, fmt.Sprintf("let through to %d addresses with %s, for %s", s.Addresses, s.Backend, s.Limit)}
	h.mu.Lock()
	defer h.mu.Unlock()
	var bad []string
	if s.Problem != "" {
		bad = append(bad, s.Problem)
	} else if h.err != nil {
		bad = append(bad, h.err.Error())
	}
	for _, f := range h.findings {
		if f.Broken {
			bad = append(bad, f.String())
		} else {
			probes.Detail += "; " + f.String()
		}
	}
	if len(bad) > 0 {
		return plugin, Part{Degraded, strings.Join(bad, "; ")}
	}
	return plugin, probes
}
