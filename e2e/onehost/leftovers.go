package onehost

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Leftovers lists what a mesh with this prefix has left on the machine:
// namespaces by name, and processes whose command line names its folder. Links,
// addresses and rules live inside its namespaces and go with them.
func Leftovers(prefix string) ([]string, error) {
	var left []string
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix+"-") {
			left = append(left, "namespace "+e.Name())
		}
	}
	pids, err := processesOf(prefix)
	for _, pid := range pids {
		left = append(left, "process "+strconv.Itoa(pid))
	}
	return left, err
}

// RemoveLeftovers removes what an earlier mesh with this prefix left when it
// was killed: its processes and its namespaces, with all that is in them.
func RemoveLeftovers(prefix string) error {
	pids, err := processesOf(prefix)
	errs := []error{err}
	for _, pid := range pids {
		if p, err := os.FindProcess(pid); err == nil {
			errs = append(errs, p.Kill())
		}
	}
	names, err := filepath.Glob(filepath.Join(netnsDir, prefix+"-*"))
	errs = append(errs, err)
	for _, n := range names {
		errs = append(errs, deleteNS(filepath.Base(n)))
	}
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"-*"))
	errs = append(errs, err)
	for _, d := range dirs {
		errs = append(errs, os.RemoveAll(d))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove leftovers of %s: %w", prefix, err)
	}
	return nil
}

// processesOf finds processes whose arguments or environment name the mesh's
// folder. This process is not among them.
func processesOf(prefix string) ([]int, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	needle := []byte(filepath.Join(os.TempDir(), prefix+"-"))
	var pids []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() || pid == os.Getppid() {
			continue
		}
		for _, f := range []string{"cmdline", "environ"} {
			// A process may end while it is looked at: then it is not left over.
			b, err := os.ReadFile(filepath.Join("/proc", d.Name(), f))
			if err == nil && bytes.Contains(b, needle) && (ours(d.Name()) || bytes.Contains(b, proxyOf(needle))) {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids, nil
}

// proxyOf is what only the environment of a mesh's proxy has, whatever its
// program is called.
func proxyOf(folder []byte) []byte { return append([]byte("INPOD_UDS="), folder...) }

// ours reports whether a process runs one of our programs, so that a reader's
// `tail -f` on a log is never killed.
func ours(pid string) bool {
	exe, err := os.Readlink(filepath.Join("/proc", pid, "exe"))
	if err != nil {
		return false
	}
	switch strings.TrimSuffix(filepath.Base(exe), " (deleted)") {
	case "controlplane", "nodeagent", "proxy", "warren-cni", "ztunnel", "bench", "bench.test":
		return true
	}
	return false
}
