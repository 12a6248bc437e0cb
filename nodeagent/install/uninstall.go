package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/internal/hostdir"
)

// Uninstall takes everything away again: our entry out of the files of others,
// our copies, the binary, the state. After it Run does nothing any more, and it
// can be called again after an error. The binary and the state stay while a file
// that could not be changed names the plugin: without them no pod would start.
func (i *Installer) Uninstall(ctx context.Context) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.left = true
	err := i.uninstall(ctx)
	if err != nil {
		err = fmt.Errorf("install: uninstall: %w", err)
		i.setState(State{Phase: Failed, Detail: err.Error()})
		return err
	}
	i.setState(State{Phase: Removed, Detail: "nothing of the plugin is on the host"})
	return nil
}

func (i *Installer) uninstall(ctx context.Context) error {
	confs, err := i.open(i.cfg.CNIConfDir)
	switch {
	case err == nil:
		err = errors.Join(i.leaveConfs(ctx, confs), confs.Close())
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err != nil {
		return err
	}
	return errors.Join(i.removeBinary(), i.removeState())
}

// leaveRounds bounds how often what others do meanwhile is followed.
const leaveRounds = 20

// leaveConfs returns nil once no file names our plugin.
func (i *Installer) leaveConfs(ctx context.Context, confs folder) error {
	var left error
	for n := range leaveRounds {
		// What came out of its place is kept until the next round.
		linger := i.cfg.Times.Leave
		if n > 0 {
			linger = 0
		}
		if _, err := i.settle(confs, linger); err != nil {
			return err
		}
		files, err := i.scan(confs)
		if err != nil {
			return err
		}
		changed, err := i.leaveFiles(confs, files)
		left = errors.Join(err, named(files, i.cfg.CNIConfDir))
		if err != nil && !errors.Is(err, errMeanwhile) {
			return left
		}
		if !changed && left == nil && len(i.kept) == 0 {
			return nil
		}
		if !sleep(ctx, i.cfg.Times.Leave) {
			return errors.Join(left, ctx.Err())
		}
	}
	return left
}

// leaveFiles takes our entry out of each file, then removes our copies.
func (i *Installer) leaveFiles(confs folder, files []file) (changed bool, err error) {
	var errs []error
	for _, f := range files {
		if !f.has() || f.kind == ours || f.kind == broken {
			continue
		}
		content, err := conflist.Remove(f.data)
		switch {
		case errors.Is(err, conflist.ErrEmpty), f.single():
			err = confs.remove(f.name) // there is nothing in it but our plugin
		case err == nil && f.info.Link:
			err = fmt.Errorf("%s/%s is a link, and what it leads to holds our plugin: take it out there", confs.Path(), f.name)
		case err == nil && !bytes.Equal(content, f.data):
			err = confs.replace(f, content)
		}
		changed = true
		errs = append(errs, err)
	}
	for _, f := range files {
		if f.kind == ours || f.kind == broken && f.ourName(i.cfg.OwnConfName) {
			changed = true
			errs = append(errs, confs.remove(f.name), confs.sync())
		}
	}
	return changed, errors.Join(errs...)
}

// named returns an error for the files that still name our plugin and that are
// not ours to change: broken ones, and those in which multus keeps a copy of the
// primary's, which it should make anew soon.
func named(files []file, dir string) error {
	var errs []error
	for _, f := range files {
		if f.mentions() && !f.has() && f.kind != ours {
			errs = append(errs, fmt.Errorf("%s/%s names our plugin and cannot be changed by us: take it out there; the plugin's binary stays until then", dir, f.name))
		}
	}
	return errors.Join(errs...)
}

func (i *Installer) removeBinary() error {
	bins, err := i.open(i.cfg.CNIBinDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer bins.Close()
	if err := bins.clean(); err != nil {
		return err
	}
	if i.cfg.KeepBinary || i.runtimeRemembers() {
		i.log.Info("left the plugin's binary on the host: this runtime deletes pods by the configuration that they were started with", "file", i.cfg.CNIBinDir+"/"+conflist.Type)
		return nil
	}
	i.verified = hostdir.Info{}
	return errors.Join(bins.remove(conflist.Type), bins.sync())
}

// runtimeRemembers says whether CRI-O, where it can be seen, runs this node: its
// DEL of a pod runs the plugins of the pod's ADD, and fails if one is gone.
func (i *Installer) runtimeRemembers() bool {
	d, err := hostdir.Open(i.cfg.HostRoot, "/run/crio")
	if err != nil {
		return false
	}
	defer d.Close()
	return d.Has("crio.sock")
}

// removeState empties the folder; it may be a mount, which cannot be removed.
func (i *Installer) removeState() error {
	if i.cfg.StateDir == "" {
		return nil
	}
	root, err := os.OpenRoot(i.cfg.StateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the state: %w", err)
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, root.RemoveAll(e.Name()))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the state in %s: %w", i.cfg.StateDir, err)
	}
	_ = os.Remove(filepath.Clean(i.cfg.StateDir))
	return nil
}
