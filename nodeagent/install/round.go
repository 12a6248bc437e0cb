package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/warren-mesh/warren/cni/conflist"
)

// round looks at the host once and makes it as it should be. It returns when to
// look again at the latest, and how long not to look whatever happens.
func (i *Installer) round(w *watch) (again, pause time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	again = i.cfg.Times.Poll
	if i.left {
		return again, 0
	}
	var r report
	for range 5 {
		r = i.once(w)
		if !errors.Is(r.err, errMeanwhile) {
			break
		}
	}
	i.setState(i.judge(r))
	if r.again > 0 {
		again = min(again, r.again)
	}
	if errors.Is(r.err, errMeanwhile) || i.contested() {
		pause = contestedPause
	}
	return again, pause
}

// report is what a round found and did.
type report struct {
	plan    plan
	files   []file // as they are now
	binary  bool   // the plugin's is on the host
	stale   error  // why that one is not the one that came with us
	missing error  // a folder is not there
	err     error
	again   time.Duration // something is to be looked at then
	istio   string        // the file by which runtimes run Istio's plugin
	follows bool          // behind ours
}

func (i *Installer) once(w *watch) (r report) {
	confs, err := i.open(i.cfg.CNIConfDir)
	if err != nil {
		return r.cannotOpen(err)
	}
	defer confs.Close()
	bins, err := i.open(i.cfg.CNIBinDir)
	if err != nil {
		return r.cannotOpen(err)
	}
	defer bins.Close()
	defer func() {
		r.istio, r.follows = istioIn(r.files, func(typ string) bool { return i.cfg.AnyBinDir || bins.Has(typ) })
	}()
	if w != nil {
		w.ensure(confs.Seen(), bins.Seen()) // before looking: what comes later is an event
	}
	var changed bool
	r.binary, changed, err = i.installBinary(bins)
	if changed {
		i.changed(false)
	}
	if !r.binary {
		// Without it, no file may name it.
		r.err = err
		r.files, _ = i.scan(confs)
		return r
	}
	r.stale = err
	if r.again, err = i.settle(confs, i.cfg.Times.Linger); err != nil {
		r.err = err
		return r
	}
	if r.files, r.err = i.scan(confs); r.err != nil {
		return r
	}
	r.plan = i.scene(r.files, bins).plan()
	if r.plan.soon {
		r.again = i.cfg.Times.Settle / 4
	}
	if changed, r.err = i.carryOut(confs, r.plan); changed {
		if r.again == 0 {
			r.again = i.cfg.Times.Linger
		}
		var scanErr error
		r.files, scanErr = i.scan(confs)
		r.err = errors.Join(r.err, scanErr)
	}
	return r
}

func (r report) cannotOpen(err error) report {
	if errors.Is(err, fs.ErrNotExist) {
		r.missing = err
	} else {
		r.err = err
	}
	return r
}

func (i *Installer) scene(files []file, bins folder) scene {
	s := scene{
		files: files, dir: i.cfg.CNIConfDir, confName: i.cfg.ConfName, chained: i.cfg.Chained, own: i.cfg.OwnConfName,
		anyBinDir: i.cfg.AnyBinDir, bins: i.cfg.CNIBinDir, hasBin: bins.Has, entry: i.cfg.PluginConfig, settle: i.cfg.Times.Settle,
	}
	was := ""
	if old, there := s.find(s.own); there && old.kind == ours {
		if was = conflist.CopyOf(old.data); was != "" {
			if _, there := s.find(was); there {
				was = ""
			}
		}
	}
	if was == "" || was != i.lostName {
		i.lost.at = time.Now()
	}
	i.lostName = was
	s.lostFor = time.Since(i.lost.at)
	return s
}

// carryOut does what was planned: first our entry comes to its place, then it
// goes from others.
func (i *Installer) carryOut(confs folder, p plan) (changed bool, err error) {
	if p.content != nil {
		if p.inPlace {
			err = confs.replace(p.base, p.content)
		} else {
			err = confs.put(p.target, bytes.NewReader(p.content), p.base.info)
		}
		if err != nil {
			return true, err
		}
		i.changed(true)
		i.log.Info("put the plugin into the network configuration", "file", i.cfg.CNIConfDir+"/"+p.target, "primary", p.primary)
		changed = true
	}
	var errs []error
	for _, e := range p.strip {
		if err := confs.replace(e.base, e.content); err != nil {
			errs = append(errs, err)
			continue
		}
		changed = true
		i.changes++
		i.log.Info("took the plugin out of a network configuration", "file", i.cfg.CNIConfDir+"/"+e.base.name)
	}
	for _, name := range p.remove {
		if err := errors.Join(confs.remove(name), confs.sync()); err != nil {
			errs = append(errs, err)
			continue
		}
		changed = true
		i.changes++
		i.log.Info("removed our copy of a network configuration", "file", i.cfg.CNIConfDir+"/"+name)
	}
	return changed || len(errs) > 0, errors.Join(errs...)
}

// judge puts into words how it is now.
func (i *Installer) judge(r report) State {
	s := State{Phase: Installed, Primary: r.plan.primary, Entry: r.plan.target, Problems: r.plan.problems, Istio: r.istio, IstioFollows: r.follows}
	first, runs := effective(r.files)
	s.Runs = runs && r.binary
	if runs && s.Entry == "" {
		s.Entry = first
	}
	if r.stale != nil {
		s.Problems = append(s.Problems, "the plugin on the host is another version: "+r.stale.Error())
	}
	if i.contested() {
		s.Problems = append(s.Problems, i.contest(r))
	}
	dir := i.cfg.CNIConfDir
	switch {
	case errors.Is(r.err, errMeanwhile):
		s.Phase, s.Detail = Waiting, "waiting for a moment in which nobody else writes the primary CNI's file"
	case r.err != nil:
		s.Phase, s.Detail = Failed, r.err.Error()
	case r.missing != nil:
		s.Phase, s.Detail = Waiting, fmt.Sprintf("waiting for a folder to appear (is this node's platform another one?): %v", r.missing)
	case r.plan.refused != nil:
		s.Phase, s.Detail = Failed, r.plan.refused.Error()
	case r.plan.wait != "":
		s.Phase, s.Detail = Waiting, "waiting for "+r.plan.wait
		if first == "" {
			s.Detail += "; pods that need a network wait too"
		}
	case !runs:
		s.Phase, s.Detail = Failed, fmt.Sprintf("runtimes take %s/%s first, which does not run our plugin; it is in %s", dir, first, s.Entry)
	default:
		i.fine = true
		s.Detail = fmt.Sprintf("runtimes run the plugin by %s/%s", dir, first)
		if s.Entry == first && first != s.Primary {
			s.Detail += ", our copy of " + s.Primary
		}
	}
	if s.Runs && s.Phase != Installed {
		s.Phase = Degraded
		s.Detail = fmt.Sprintf("runtimes run the plugin by %s/%s, but: %s", dir, first, s.Detail)
	}
	if s.Phase == Installed && len(s.Problems) > 0 {
		s.Phase = Degraded
	}
	return s
}

// contest says what to do about another program that undoes what we do.
func (i *Installer) contest(r report) string {
	text := fmt.Sprintf("somebody else undid our change %d times in the last %s", len(i.recent), contestedIn)
	cilium := slices.ContainsFunc(r.files, func(f file) bool {
		return slices.Contains(f.types(), "cilium-cni") || strings.Contains(f.name, "cilium")
	})
	switch {
	case cilium:
		return text + ": Cilium needs cni.exclusive=false, and a file of our own (no chaining) keeps out of its way"
	case r.plan.inPlace:
		return text + ": a file of our own (no chaining) keeps out of the primary CNI's way"
	}
	return text + ": another CNI wants to be the only one in " + i.cfg.CNIConfDir
}
