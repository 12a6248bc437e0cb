package podns

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/podproc"
)

const (
	maxMountinfo = 16 << 20
	hostInit     = "1" // the host's first process, if that is to be seen
)

// process is one that was seen. PIDs are used again, start times are not.
type process struct {
	pid   int
	start uint64 // in clock ticks since boot
	podproc.Place
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
	if p.Place, err = podproc.ReadPlace(at + "cgroup"); err != nil {
		return p, nil, err
	}
	stat, err := podproc.ReadFile(at+"stat", podproc.MaxFile)
	if err != nil {
		return p, nil, err
	}
	if p.start, err = podproc.StartTime(stat); err != nil {
		return p, nil, err
	}
	if ns, err = netns.Open(at + "ns/net"); err != nil {
		return p, nil, err
	}
	p.ns = ns.ID()
	return p, ns, nil
}

// held are the inodes of the network namespaces that are mounted somewhere on the
// host. Runtimes do that with those that they make. Nil: it cannot be seen.
func held(proc string) map[uint64]bool {
	text, err := podproc.ReadFile(filepath.Join(proc, hostInit, "mountinfo"), maxMountinfo)
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
