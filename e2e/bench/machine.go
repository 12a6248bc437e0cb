package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// wantFDs is enough for both ends of the idle connections in one proxy.
const wantFDs = 65536

// raiseFDs lets this program, and those that it starts, hold many connections.
// Where the hard limit is in the way, as without root, it takes what there is.
func raiseFDs() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	want := syscall.Rlimit{Cur: max(l.Cur, wantFDs), Max: max(l.Max, wantFDs)}
	err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &want)
	if errors.Is(err, syscall.EPERM) {
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: l.Max, Max: l.Max})
	}
	if err != nil {
		return fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	return nil
}

// maxFDs is how many descriptors this program and its children may have.
func maxFDs() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return int(min(l.Cur, 1<<20))
}

// busy is the CPU time, in seconds, that the whole machine has used so far,
// time stolen by its host included.
func busy() (float64, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 9 {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	const hz = 100 // USER_HZ, fixed for what /proc reports
	var ticks float64
	for i, f := range fields[1:9] { // user nice system idle iowait irq softirq steal (proc(5))
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 {
			ticks += n
		}
	}
	return ticks / hz, nil
}

// quiet waits, at most for patience, until the machine is nearly idle.
func quiet(ctx context.Context, patience time.Duration) error {
	const (
		look   = 200 * time.Millisecond
		enough = 0.15 // cores
	)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		before, err := busy()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(look):
		}
		now, err := busy()
		if err != nil {
			return err
		}
		if (now-before)/look.Seconds() < enough {
			return nil
		}
	}
	return nil
}

// Machine describes where a run took place.
type Machine struct {
	Go, Kernel, CPU string
	CPUs            int
	Load            string // averages before the run
}

func thisMachine() Machine {
	m := Machine{Go: runtime.Version(), CPUs: runtime.NumCPU()}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel = strings.TrimSpace(string(kernel))
	load, _ := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(load)); len(f) >= 3 {
		m.Load = strings.Join(f[:3], " ")
	}
	info, _ := os.ReadFile("/proc/cpuinfo")
	if _, rest, ok := strings.Cut(string(info), "model name"); ok {
		name, _, _ := strings.Cut(rest, "\n")
		m.CPU = strings.Trim(name, "\t :")
	}
	return m
}

// namespaces is where named network namespaces are.
const namespaces = "/var/run/netns"

// onlyOne lets runs on one machine take turns instead of measuring each other:
// it holds a lock until free is called. The lock is on the folder of the named
// namespaces, which is there and stays, so that no file is left behind.
func onlyOne(ctx context.Context) (free func(), err error) {
	f, err := os.Open(namespaces)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// removeDead removes what runs that were killed have left.
func removeDead() error {
	var found []string
	for _, pattern := range []string{namespaces + "/", os.TempDir() + "/"} {
		names, err := filepath.Glob(pattern + prefix + "*-*-*")
		if err != nil {
			return err
		}
		found = append(found, names...)
	}
	var errs []error
	for _, f := range found {
		parts := strings.SplitN(strings.TrimPrefix(filepath.Base(f), prefix), "-", 3)
		pid, err := strconv.Atoi(parts[0])
		if err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join("/proc", parts[0])); err == nil && pid != os.Getpid() {
			continue // it still runs
		}
		errs = append(errs, onehost.RemoveLeftovers(prefix+parts[0]+"-"+parts[1]))
	}
	return errors.Join(errs...)
}
