package podns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/warren-mesh/warren/internal/netns"
)

const (
	maxFile      = 64 << 10 // of one process's files
	maxMountinfo = 16 << 20
	hostInit     = "1" // the host's first process, if that is to be seen
)

// process is one that was seen. PIDs are used again, start times are not.
type process struct {
	pid   int
	start uint64 // in clock ticks since boot
	place
	ns netns.ID
}

// look reads everything about a process through one handle: what was opened is
// that process for good, also when its PID is another's. Those that have ended,
// and not been waited for, have no namespace.
func look(proc string, pid int) (p process, ns *netns.NS, err error) {
	dir, err := os.Open(filepath.Join(proc, strconv.Itoa(pid)))
	if err != nil {
		return p, nil, err
	}
	defer dir.Close()
	at := fmt.Sprintf("/proc/self/fd/%d/", dir.Fd())
	p.pid = pid
	if p.place, err = readPlace(at + "cgroup"); err != nil {
		return p, nil, err
	}
	stat, err := readFile(at+"stat", maxFile)
	if err != nil {
		return p, nil, err
	}
	if p.start, err = startTime(stat); err != nil {
		return p, nil, err
	}
	if ns, err = netns.Open(at + "ns/net"); err != nil {
		return p, nil, err
	}
	p.ns = ns.ID()
	return p, ns, nil
}

func readPlace(path string) (place, error) {
	text, err := readFile(path, maxFile)
	if err != nil {
		return place{}, err
	}
	return parseCgroup(text)
}

// startTime is field 22 of /proc/N/stat. The second is a name in brackets, which
// may itself have any in it.
func startTime(stat string) (uint64, error) {
	const field, afterName = 22, 3
	at := strings.LastIndexByte(stat, ')')
	if fields := strings.Fields(stat[at+1:]); at >= 0 && len(fields) > field-afterName {
		return strconv.ParseUint(fields[field-afterName], 10, 64)
	}
	return 0, errors.New("/proc/N/stat has no start time")
}

// pids are those of the processes that there are now. Threads are not listed.
func pids(proc string) (all []int, err error) {
	dir, err := os.Open(proc)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid > 0 {
			all = append(all, pid)
		}
	}
	return all, err
}

// held are the inodes of the network namespaces that are mounted somewhere on the
// host. Runtimes do that with those that they make. Nil: it cannot be seen.
func held(proc string) map[uint64]bool {
	text, err := readFile(filepath.Join(proc, hostInit, "mountinfo"), maxMountinfo)
	if err != nil {
		return nil
	}
	inodes := map[uint64]bool{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line) // ID, parent, device, root, …
		if len(fields) < 4 {
			continue
		}
		name, ok := strings.CutPrefix(fields[3], "net:[")
		if inode, err := strconv.ParseUint(strings.TrimSuffix(name, "]"), 10, 64); ok && err == nil && strings.Contains(line, " - nsfs ") {
			inodes[inode] = true
		}
	}
	return inodes
}

// hosts are the namespaces that are no pod's: the host's and our own.
func hosts(proc string) map[netns.ID]bool {
	ids := map[netns.ID]bool{}
	for _, path := range []string{filepath.Join(proc, hostInit, "ns/net"), "/proc/self/ns/net"} {
		if ns, err := netns.Open(path); err == nil { // one may not be to be seen
			ids[ns.ID()] = true
			ns.Close()
		}
	}
	return ids
}

func readFile(path string, limit int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return string(text), err
}
