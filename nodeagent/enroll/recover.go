package enroll

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/netns"
)

// errGone says that a namespace does not exist any more. That it cannot be
// opened says less: the agent may see the host's files in part only.
var errGone = errors.New("the pod's network namespace is gone")

// Recover takes up what an earlier agent of this node left: DELs that nobody
// heard go first, then every pod whose namespace is still there is as it was. It
// comes before Run, before the proxy may ask for the snapshot, and before the
// plugin may ask for anything.
func (e *Enroller) Recover(ctx context.Context) error {
	tombs, err := event.Tombstones(e.cfg.StateDir)
	if err != nil { // about some of them; the others are there
		e.log.Error("a tombstone cannot be read", "err", err)
	}
	for _, t := range tombs {
		if err := errors.Join(e.store.remove(t.Key), event.RemoveTombstone(e.cfg.StateDir, t.Key)); err != nil {
			return fmt.Errorf("enroll: recover: %w", err)
		}
	}
	records, damaged, err := e.store.all()
	if err != nil {
		return err
	}
	for _, err := range damaged {
		e.log.Error("an attachment cannot be read", "err", err)
	}
	// The newest first: of two sandboxes of one pod it is the one that counts.
	slices.SortFunc(records, func(a, b record) int { return b.Added.Compare(a.Added) })
	for _, r := range records {
		if err := e.recoverOne(ctx, r); err != nil {
			e.log.Info("an attachment is forgotten", "pod", r.PodNamespace+"/"+r.PodName, "uid", r.PodUID, "err", err)
			if err := e.store.remove(r.Key); err != nil {
				return err
			}
		}
	}
	e.log.Info("recovered the pods of an earlier agent", "pods", len(e.members), "attachments", len(records), "tombstones", len(tombs))
	return nil
}

// recoverOne returns why a record is to be forgotten.
func (e *Enroller) recoverOne(ctx context.Context, r record) error {
	if r.BootID != "" && e.cfg.BootID != "" && r.BootID != e.cfg.BootID {
		return errors.New("the machine has been restarted since")
	}
	m := e.members[r.PodUID]
	if m != nil && m.box.id != r.NetnsID {
		return errors.New("the pod has a newer sandbox")
	}
	ns, err := e.reopen(r.Netns, r.NetnsID)
	if errors.Is(err, errGone) && (r.Source != SourceFound || e.cfg.Finder == nil) {
		return err
	}
	if err != nil {
		e.log.Warn("a pod's network namespace cannot be opened now", "pod", r.PodNamespace+"/"+r.PodName, "uid", r.PodUID, "err", err)
	}
	if r.Phase == PhaseAdding {
		return e.undoAdd(r, ns)
	}
	if m == nil {
		m = e.recovered(r, ns)
	} else if ns != nil {
		ns.Close() // another interface of a pod that is here already
	}
	m.box.attached[r.Key] = attachment{network: r.Network, source: r.Source, added: r.Added, add: event.Add{
		Key: r.Key, Network: r.Network, PodName: r.PodName, PodNamespace: r.PodNamespace, PodUID: r.PodUID, IPs: r.IPs, Netns: r.Netns,
	}}
	e.keys[r.Key] = m.uid
	return nil
}

// recovered makes the member of a record.
func (e *Enroller) recovered(r record, ns *netns.NS) *member {
	m := &member{
		uid: r.PodUID, busy: make(chan struct{}, 1), name: PodName{r.PodNamespace, r.PodName}, serviceAccount: r.ServiceAccount,
		phase: r.Phase, reason: r.Reason, since: time.Now(), announced: r.Phase.served(),
		box: &sandbox{ns: ns, id: r.NetnsID, path: r.Netns, redirect: r.Redirect, theirs: r.Theirs, attached: make(map[event.Key]attachment)},
	}
	m.before.conns, m.before.more, m.before.anew = r.Before, r.BeforeMore, r.BeforeUnseen || r.BeforeMore > 0
	if !m.announced {
		m.box.ns = nil
		if ns != nil {
			ns.Close()
		}
	} else {
		m.suspect = time.Now().Add(2 * e.times.Sweep)
		if m.box.redirect == nil {
			d := e.cfg.Redirect
			d.Backend = e.cfg.Backend.Name()
			m.box.redirect = &d
		}
	}
	e.members[m.uid] = m
	return m
}

// undoAdd takes away what an ADD had done when the agent went down in it. The
// runtime has been told that it failed.
func (e *Enroller) undoAdd(r record, ns *netns.NS) error {
	reason := errors.New("its ADD was never finished")
	if ns == nil {
		return reason
	}
	defer ns.Close()
	b, err := e.backend(r.Redirect)
	if err == nil {
		err = b.Remove(ns)
	}
	return errors.Join(reason, err)
}

// reopen opens a namespace by its path and makes sure that it is the one.
func (e *Enroller) reopen(path string, id netns.ID) (*netns.NS, error) {
	if path == "" {
		return nil, errors.New("enroll: the runtime gave no path of the pod's network namespace")
	}
	host := e.hostPath(path)
	ns, err := netns.Open(host)
	switch {
	case err == nil && ns.ID() == id:
		return ns, nil
	case err == nil:
		ns.Close()
		return nil, fmt.Errorf("%w: at %s there is another", errGone, path)
	case errors.Is(err, netns.ErrNotNetNS):
		return nil, fmt.Errorf("%w: %w", errGone, err)
	case errors.Is(err, fs.ErrNotExist) && (strings.HasPrefix(path, "/proc/") || folder(filepath.Dir(host))):
		return nil, fmt.Errorf("%w: %w", errGone, err)
	default:
		return nil, fmt.Errorf("enroll: %w", err)
	}
}

func folder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
