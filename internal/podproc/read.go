package podproc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// MaxFile bounds what is read of one process's files.
const MaxFile = 64 << 10

// ReadPlace reads a process's file of control groups.
func ReadPlace(path string) (Place, error) {
	text, err := ReadFile(path, MaxFile)
	if err != nil {
		return Place{}, err
	}
	return ParseCgroup(text)
}

// StartTime is field 22 of /proc/N/stat, in clock ticks since boot. The second is a name in brackets, which may itself
// have any in it.
func StartTime(stat string) (uint64, error) {
	const field, afterName = 22, 3
	at := strings.LastIndexByte(stat, ')')
	if fields := strings.Fields(stat[at+1:]); at >= 0 && len(fields) > field-afterName {
		return strconv.ParseUint(fields[field-afterName], 10, 64)
	}
	return 0, errors.New("/proc/N/stat has no start time")
}

// PIDs are those of the processes that there are now. Threads are not listed.
func PIDs(proc string) (all []int, err error) {
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

// ReadFile reads a file of at most limit bytes; a longer one is an error.
func ReadFile(path string, limit int64) (string, error) {
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
