package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/warren-mesh/warren/cni/event"
)

// What the parts of a clean leave may take.
const (
	askWithin   = 4 * time.Second  // for the API server to say whether a successor comes
	hostWithin  = 6 * time.Second  // for the plugin's files, and for the host's rules
	marksWithin = 3 * time.Second  // for the pods' annotations
	knowWithin  = 10 * time.Second // for the objects, before a cleaning by hand
	lateWithin  = time.Minute      // for the pods that are left, unless the agent is killed before
	spareWithin = 2 * time.Second  // for the agent's own end

	othersWithin = askWithin + 2*hostWithin + marksWithin + spareWithin
	leastForPods = 5 * time.Second
)

// podsWithin is for the pods: what all of it may take, less the rest.
func (c *Config) podsWithin() time.Duration {
	return max(c.TerminationGracePeriod-othersWithin, leastForPods)
}

// Uninstall takes everything of the mesh's from this node: the plugin, the pods'
// rules and annotations, the host's rules, the state. No agent may run here.
func Uninstall(ctx context.Context, cfg Config, log *slog.Logger) error {
	cfg.OnExit, cfg.HealthListen, cfg.MetricsListen = OnExitUninstall, "", ""
	a, err := New(cfg, log)
	if err != nil {
		return err
	}
	a.only = true
	run, begin := context.WithCancel(ctx)
	defer begin()
	// The objects are needed for the annotations; without them the rest is done.
	go func() {
		defer begin()
		select {
		case <-a.source.Synced():
		case <-time.After(knowWithin):
			log.Warn("the objects are not known: annotations of pods stay", "source", a.source.name)
		case <-run.Done():
		}
	}()
	return a.Run(run)
}

// end is what is done when the agent is told to end.
func (a *Agent) end(ctx context.Context) error {
	gone, why := a.goes(ctx)
	if !gone {
		a.lookAround(ctx)
		a.log.Info("the agent ends and leaves everything to its successor", "why", why)
		return nil
	}
	a.log.Info("the mesh leaves this node", "why", why)
	if err := a.uninstall(ctx); err != nil {
		return fmt.Errorf("nodeagent: uninstall: %w", err)
	}
	a.log.Info("nothing of the mesh is left on this node")
	return nil
}

// lookAround has the file that the plugin goes by from now on know of other nodes' pods.
func (a *Agent) lookAround(ctx context.Context) {
	if a.cluster == nil {
		return
	}
	if err := within(ctx, marksWithin, a.cluster.others.Look); err != nil {
		a.log.Warn("cannot look for pods of other nodes that are in the mesh by their own labels", "err", err)
	}
}

// goes says whether this agent is the last one here.
func (a *Agent) goes(ctx context.Context) (gone bool, why string) {
	switch {
	case a.cfg.OnExit != OnExitAuto:
		return a.cfg.OnExit == OnExitUninstall, "so configured"
	case a.cluster == nil || a.cluster.owner == nil:
		return false, "no DaemonSet was named"
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	gone, why, err := a.cluster.owner.Gone(ctx)
	if err != nil {
		return false, "it cannot be told whether a successor comes: " + err.Error()
	}
	return gone, why
}

// uninstall goes on after errors: what can go goes. New pods do not meet the plugin
// any more before the first pod leaves.
func (a *Agent) uninstall(ctx context.Context) error {
	var errs []error
	pluginStays := false
	if a.host.install != nil {
		err := within(ctx, hostWithin, a.host.install.Uninstall)
		pluginStays = err != nil
		errs = append(errs, err)
	}
	retire := func(ctx context.Context) error { return a.enroll.Retire(ctx, "the mesh leaves this node") }
	retired := within(ctx, a.podsWithin, retire)
	unmarked := within(ctx, marksWithin, a.unmarked)
	errs = append(errs, within(ctx, hostWithin, a.host.remove))
	if retired != nil {
		a.log.Warn("pods are left, and what time there is goes to them", "err", retired)
		retired, unmarked = within(ctx, lateWithin, retire), within(ctx, marksWithin, a.unmarked)
	}
	errs = append(errs, retired, unmarked)
	switch {
	case pluginStays: // whoever still runs it must not wait for us
		errs = append(errs, a.openDoors())
	case retired == nil:
		errs = append(errs, a.forget())
	}
	return errors.Join(errs...)
}

func within(ctx context.Context, d time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, d, fmt.Errorf("not done within %s", d))
	defer cancel()
	return do(ctx)
}

// unmarked waits until no pod says any more that it is in the mesh.
func (a *Agent) unmarked(ctx context.Context) error {
	if a.cluster == nil {
		return nil
	}
	for {
		marks, changed := a.enroll.Marks()
		_, viewed := a.watch.View()
		if len(marks) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%d pods still say that they are in the mesh: %w", len(marks), context.Cause(ctx)), a.cluster.problem())
		case <-changed:
		case <-viewed:
		}
	}
}

// openDoors makes a plugin that could not be taken away let every pod pass, those of
// namespaces that are yet to be made as well.
func (a *Agent) openDoors() error {
	return event.WriteAway(filepath.Join(a.cfg.StateDir, event.AwayName), event.Away{Others: event.NSOut})
}

// forget empties the state directory.
func (a *Agent) forget() error {
	entries, err := os.ReadDir(a.cfg.StateDir)
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(a.cfg.StateDir, e.Name())))
	}
	return errors.Join(errs...)
}
