package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/warren-mesh/warren/internal/netns"
)

// podsCgroup is in the path of every pod's cgroup, whichever way kubelet makes
// them.
const podsCgroup = "kubepods"

// maxKubelets bounds how many processes may be taken for one.
const maxKubelets = 8

// KubeletNames are the names (comm) of the programs that kubelet is, or is in:
// MicroK8s' and K3s' have all of Kubernetes in one process.
func KubeletNames() []string { return []string{"kubelet", "kubelite", "k3s-server", "k3s-agent"} }

// finder looks for kubelet among the host's processes.
type finder struct {
	proc  string
	names []string
	place *place
}

// find returns the processes that have kubelet's name, are in the host's network
// and are in no pod. A pod's process can call itself anything.
func (f finder) find() (found []kubelet, err error) {
	var dirs []os.DirEntry
	var denied error
	err = f.place.do(func() error { // for paths of cgroups as the host sees them
		if dirs, err = os.ReadDir(f.proc); err != nil {
			return err
		}
		for _, d := range dirs {
			pid, notPID := strconv.Atoi(d.Name())
			if notPID != nil || !f.named(pid) {
				continue
			}
			k, ok, err := f.look(pid)
			if ok {
				found = append(found, k)
			}
			denied = errors.Join(denied, err)
		}
		return nil
	})
	if err == nil && len(found) > maxKubelets {
		return nil, fmt.Errorf("%d processes of the host's are called %s", len(found), strings.Join(f.names, " or "))
	}
	if err == nil && len(found) == 0 {
		err = denied
	}
	return found, err
}

func (f finder) read(pid int, name string) string {
	text, err := os.ReadFile(filepath.Join(f.proc, strconv.Itoa(pid), name))
	if err != nil {
		return "" // it has ended meanwhile
	}
	return string(text)
}

func (f finder) named(pid int) bool {
	return slices.Contains(f.names, strings.TrimSuffix(f.read(pid, "comm"), "\n"))
}

// look says what there is to know of a process, and whether it may be kubelet.
func (f finder) look(pid int) (k kubelet, ok bool, err error) {
	ns, err := netns.Open(filepath.Join(f.proc, strconv.Itoa(pid), "ns/net"))
	if errors.Is(err, os.ErrPermission) {
		return k, false, fmt.Errorf("%w (CAP_SYS_PTRACE is missing)", err)
	} else if err != nil {
		return k, false, nil // it has ended meanwhile
	}
	defer ns.Close()
	all := f.read(pid, "cgroup")
	if ns.ID() != f.place.ns.ID() || strings.Contains(all, podsCgroup) {
		return k, false, nil
	}
	k = kubelet{PID: pid, Start: started(f.read(pid, "stat"))}
	uid, err := user(f.read(pid, "status"))
	if err != nil || k.Start == "" {
		return k, false, nil
	}
	k.UID = uid
	k.Cgroup, k.Lasting, err = f.cgroups(all)
	if err != nil {
		k.Shared = err.Error()
	}
	return k, true, nil
}

// cgroups finds the cgroup that is kubelet's own, and the one around it that
// lasts.
func (f finder) cgroups(all string) (own, lasting Cgroup, err error) {
	path, ok := unified(all)
	if !ok {
		return own, lasting, errors.New("kubelet is in no cgroup of version 2")
	}
	if own, err = f.place.cgroup(path); err != nil {
		return own, lasting, fmt.Errorf("kubelet has no cgroup of its own: %w", err)
	}
	if pods, err := f.place.holdsPods(own.Path); err != nil || pods {
		return own, lasting, errors.Join(err, fmt.Errorf("the pods are in kubelet's cgroup %s", own.Path))
	}
	if slice, _, below := strings.Cut(own.Path, "/"); below && strings.HasSuffix(slice, ".slice") {
		if pods, err := f.place.holdsPods(slice); err == nil && !pods {
			lasting, err = f.place.cgroup(slice)
			return own, lasting, err
		}
	}
	return own, lasting, nil
}

// same says whether the processes are still those that were found.
func (f finder) same(found []kubelet) bool {
	if len(found) == 0 {
		return false
	}
	for _, k := range found {
		if started(f.read(k.PID, "stat")) != k.Start {
			return false
		}
	}
	return true
}

// unified is the path in /proc/PID/cgroup of the hierarchy of version 2.
func unified(text string) (path string, ok bool) {
	for line := range strings.Lines(text) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(path, "\n"), true
		}
	}
	return "", false
}

// started is field 22 of /proc/PID/stat. The second, in parentheses, may
// contain anything.
func started(text string) string {
	fields := strings.Fields(text[strings.LastIndex(text, ")")+1:])
	if len(fields) < 20 {
		return ""
	}
	return fields[19]
}

// user is the one that files and sockets are made as, in /proc/PID/status.
func user(text string) (uint32, error) {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok {
			if fields := strings.Fields(rest); len(fields) == 4 {
				id, err := strconv.ParseUint(fields[3], 10, 32)
				return uint32(id), err
			}
		}
	}
	return 0, errors.New("no Uid")
}
