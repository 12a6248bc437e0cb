package proxy

import (
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// cgroupRoot is where the hierarchies are mounted, in a container as well.
const cgroupRoot = "sys/fs/cgroup"

// limits are what the cgroups of the process leave it; zero is no limit.
type limits struct {
	memory int64   // bytes
	cpus   float64 // CPU seconds a second
}

// readLimits reads the limits of our own cgroup and of all above it, in both
// versions of cgroups, from a file system that has /proc and /sys. What is not
// there limits nothing. Inside a container its own cgroup may be mounted as the
// root while /proc says the path on the host: then that path leads nowhere, and
// the root alone is read.
func readLimits(root fs.FS) limits {
	var l limits
	text, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return l
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		controllers, at := fields[1], path.Clean("/"+fields[2])
		for { // our own cgroup, then its parents
			for _, dir := range mounts(controllers) {
				l.add(root, path.Join(dir, at), controllers)
			}
			if at == "/" {
				break
			}
			at = path.Dir(at)
		}
	}
	return l
}

// mounts are the folders in which a hierarchy may be: version 1 has one each,
// named after all its controllers or one; version 2 has the root.
func mounts(controllers string) []string {
	if controllers == "" {
		return []string{cgroupRoot}
	}
	dirs := []string{path.Join(cgroupRoot, controllers)}
	if strings.Contains(controllers, ",") {
		for c := range strings.SplitSeq(controllers, ",") {
			dirs = append(dirs, path.Join(cgroupRoot, c))
		}
	}
	return dirs
}

// add takes the limits of one cgroup. Above memory.high the kernel slows a
// process down so much that it counts as the limit.
func (l *limits) add(root fs.FS, dir, controllers string) {
	if controllers == "" {
		l.addMemory(readWords(root, dir, "memory.max"))
		l.addMemory(readWords(root, dir, "memory.high"))
		if w := readWords(root, dir, "cpu.max"); len(w) == 2 {
			l.addCPU(w[0], w[1])
		}
		return
	}
	for c := range strings.SplitSeq(controllers, ",") {
		switch c {
		case "memory":
			l.addMemory(readWords(root, dir, "memory.limit_in_bytes"))
		case "cpu":
			quota, period := readWords(root, dir, "cpu.cfs_quota_us"), readWords(root, dir, "cpu.cfs_period_us")
			if len(quota) == 1 && len(period) == 1 {
				l.addCPU(quota[0], period[0])
			}
		}
	}
}

// readWords reads a file of one line. Nil: there is none.
func readWords(root fs.FS, dir, name string) []string {
	text, err := fs.ReadFile(root, path.Join(dir, name))
	if err != nil {
		return nil
	}
	return strings.Fields(string(text))
}

// noMemoryLimit is less than version 1 has for no limit, and more than any is.
const noMemoryLimit = 1 << 60

// addMemory takes a limit if it is lower. "max" is no number.
func (l *limits) addMemory(words []string) {
	if len(words) != 1 {
		return
	}
	n, err := strconv.ParseInt(words[0], 10, 64)
	if err == nil && n > 0 && n < noMemoryLimit && (l.memory == 0 || n < l.memory) {
		l.memory = n
	}
}

// addCPU likewise. No limit is "max", or -1.
func (l *limits) addCPU(quota, period string) {
	q, qerr := strconv.ParseInt(quota, 10, 64)
	p, perr := strconv.ParseInt(period, 10, 64)
	if qerr != nil || perr != nil || q <= 0 || p <= 0 {
		return
	}
	if n := float64(q) / float64(p); l.cpus == 0 || n < l.cpus {
		l.cpus = n
	}
}
