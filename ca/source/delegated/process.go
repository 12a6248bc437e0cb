package delegated

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	api "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"

	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/internal/podproc"
)

// initialPIDs is the inode of the PID namespace that the host boots in (PROC_PID_INIT_INO).
const initialPIDs = "pid:[4026531836]"

// checkPIDs refuses to name processes that the agent would know by other numbers. Where proc is of our own PID namespace,
// its process 1 says nothing by being in that: it is the host's if it is not of our own container or pod, whose PID namespace
// ours would then be (nodes may be containers themselves).
func checkPIDs(proc string) error {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return err
	}
	if own == initialPIDs {
		return nil
	}
	host, err := os.Readlink(filepath.Join(proc, "1/ns/pid"))
	if err == nil && own == host && !samePod("/proc", proc) {
		return nil
	}
	return fmt.Errorf("this process is in PID namespace %s: attesting by PID needs the host's (hostPID: true)", own)
}

// samePod reports whether process 1 of proc, which is our own /proc, is in our control groups, or in those of a container
// beside ours: the sandbox's, where a pod shares its PID namespace.
func samePod(self, proc string) bool {
	a, errA := os.Stat(filepath.Join(self, "self/ns"))
	b, errB := os.Stat(filepath.Join(proc, "self/ns"))
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		return false // another one's /proc, with processes by the numbers that they have there
	}
	ours, errA := podproc.ReadFile(filepath.Join(self, "self/cgroup"), podproc.MaxFile)
	first, errB := podproc.ReadFile(filepath.Join(proc, "1/cgroup"), podproc.MaxFile)
	return errA != nil || errB != nil || ours == first || siblings(ours, first)
}

// siblings reports whether two processes are in different control groups of one parent, which is not the root.
func siblings(a, b string) bool {
	groups := func(text string) map[string]string {
		out := map[string]string{}
		for line := range strings.Lines(text) {
			if at := strings.IndexByte(line, '/'); at > 0 {
				out[line[:at]] = strings.TrimSpace(line[at:])
			}
		}
		return out
	}
	others := groups(b)
	for hierarchy, ours := range groups(a) {
		other, ok := others[hierarchy]
		if parent := above(ours); ok && ours != other && parent != "" && parent == above(other) {
			return true
		}
	}
	return false
}

// above is the parent of a control group's path, as seen from a control group namespace: there the way up is "/..".
func above(group string) string {
	if group == "/" {
		return "/.."
	}
	return group[:strings.LastIndexByte(group, '/')]
}

// watchProcess has SPIRE attest one process of the pod, and goes on to the next if it is not given the identity.
func (s *Source) watchProcess(ctx context.Context, pod svid.Pod, id spiffeid.ID, emit func(svid.Update)) error {
	processes, err := s.prove(ctx, pod)
	if err != nil {
		return err
	}
	defer func() {
		for _, p := range processes {
			_ = p.Close() // what was only looked at
		}
	}()
	for n, p := range processes {
		last := n == len(processes)-1
		said := false
		err := s.attest(ctx, pod, p, id, last, func(u svid.Update) {
			said = true
			emit(u)
		})
		if errors.Is(err, errNotThisOne) {
			continue
		}
		if said && ctx.Err() == nil && !errors.Is(err, svid.ErrProcessEnded) {
			processes = slices.Delete(slices.Clone(processes), n, n+1)
			err = outlived(p, err)
		}
		return err
	}
	return errors.New("delegated identity API: the pod has no process to attest")
}

// outlived is err of a stream whose process lives. What was given for it stays in use, but only while it lives: a container
// that starts meanwhile has been attested by nobody.
func outlived(p *podproc.Process, err error) error {
	return &svid.OutlivedError{Err: err, Wait: func(ctx context.Context) error {
		_ = p.Wait(ctx) // one that cannot be watched counts as ended
		_ = p.Close()
		return ctx.Err()
	}}
}

// errNotThisOne is of a process to which SPIRE gives other identities; another container of the pod may have the one.
var errNotThisOne = errors.New("another process may be given the identity")

func (s *Source) attest(ctx context.Context, pod svid.Pod, p *podproc.Process, id spiffeid.ID, last bool, emit func(svid.Update)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	waited := make(chan struct{})
	defer func() {
		cancel(nil)
		<-waited
	}()
	s.done.Go(func() {
		defer close(waited)
		if err := p.Wait(ctx); err == nil {
			cancel(podproc.ErrEnded)
		}
	})
	proof := proofOf(p)
	first := true
	check := func() error {
		if err := p.Prove(pod.UID, pod.Netns); err != nil {
			return fmt.Errorf("delegated identity API: %w", err)
		}
		return nil
	}
	var other bool
	err := s.follow(ctx, &api.SubscribeToX509SVIDsRequest{Pid: int32(p.PID)}, check, func(u svid.Update) { //nolint:gosec // a PID
		if first && !last && !slices.ContainsFunc(u.SVIDs, func(s svid.SVID) bool { return s.ID == id }) {
			other = true
			cancel(errNotThisOne)
		}
		first = false
		if !other {
			u.Proof = proof
			emit(u)
		}
	})
	switch {
	case other:
		return errNotThisOne
	case errors.Is(context.Cause(ctx), podproc.ErrEnded) || errors.Is(p.Alive(), podproc.ErrEnded):
		return fmt.Errorf("delegated identity API: process %d: %w", p.PID, svid.ErrProcessEnded)
	}
	return err
}

func proofOf(p *podproc.Process) svid.Proof {
	return svid.Proof{PID: p.PID, Container: p.Container(), At: time.Now().UTC()}
}

// Prove implements svid.Prover: what is checked here before SPIRE is asked for a process, without asking.
func (s *Source) Prove(ctx context.Context, pod svid.Pod) (svid.Proof, <-chan struct{}, error) {
	processes, err := s.prove(ctx, pod)
	if err != nil {
		return svid.Proof{}, nil, err
	}
	for _, p := range processes[1:] {
		err = errors.Join(err, p.Close())
	}
	p := processes[0]
	if err != nil {
		return svid.Proof{}, nil, errors.Join(err, p.Close())
	}
	ended := make(chan struct{})
	s.done.Go(func() {
		defer close(ended)
		_ = p.Wait(ctx)
		_ = p.Close()
	})
	return proofOf(p), ended, nil
}

// prove finds the processes that are the pod's applications', oldest first. That of the sandbox is none: it lives as long as
// the pod, and SPIRE looks half a minute for its container among those of the pod, where it is not.
func (s *Source) prove(ctx context.Context, pod svid.Pod) ([]*podproc.Process, error) {
	if pod.UID == "" || pod.Netns.IsZero() {
		return nil, &svid.PermanentError{Err: errors.New("delegated identity API: the pod's UID and network namespace are not known")}
	}
	pids, err := s.scan.of(ctx, pod.UID)
	if err != nil {
		return nil, fmt.Errorf("delegated identity API: look for processes of pod %s: %w", pod.UID, err)
	}
	var proven []*podproc.Process
	var errs []error
	for _, pid := range pids[:min(len(pids), maxLooks)] {
		p, err := s.proveOne(pod, pid)
		switch {
		case err == nil:
			proven = append(proven, p)
		case len(errs) < maxErrors:
			errs = append(errs, err)
		}
	}
	proven = applications(proven)
	if len(proven) == 0 {
		return nil, fmt.Errorf("delegated identity API: pod %s has no running container yet: %w", pod.UID, errors.Join(append(errs, svid.ErrNotAsked)...))
	}
	return proven, nil
}

func (s *Source) proveOne(pod svid.Pod, pid int) (*podproc.Process, error) {
	p, err := podproc.Open(s.cfg.Proc, pid)
	if err != nil {
		return nil, err
	}
	if err := p.Prove(pod.UID, pod.Netns); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// applications are those of a pod's processes that are not in the sandbox's container, oldest first, and the first few of
// them; the others are closed. The sandbox is older than all others, so that an application may have its name.
func applications(all []*podproc.Process) (out []*podproc.Process) {
	slices.SortStableFunc(all, func(a, b *podproc.Process) int { return cmp.Compare(a.Start, b.Start) })
	first := slices.IndexFunc(all, func(p *podproc.Process) bool { return p.Name() == sandbox })
	container := ""
	if first >= 0 {
		container = all[first].Container()
	}
	for n, p := range all {
		if n == first || len(out) == maxTries || container != "" && p.Container() == container {
			_ = p.Close()
			continue
		}
		out = append(out, p)
	}
	return out
}

const (
	sandbox   = "pause"
	maxTries  = 8  // processes of one pod that SPIRE is asked for
	maxLooks  = 64 // that are looked at: a pod may have as many as it likes
	maxErrors = 3
	scanAge   = 200 * time.Millisecond
)

// scanner lists processes by pod. Many pods that start together share one look.
type scanner struct {
	proc string

	mu   sync.Mutex
	at   time.Time
	pods map[string][]int
}

func (s *scanner) of(ctx context.Context, uid string) ([]int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.at) > scanAge {
		all, err := podproc.PIDs(s.proc)
		if err != nil {
			return nil, err
		}
		s.pods = make(map[string][]int)
		for _, pid := range all {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			at, err := podproc.ReadPlace(filepath.Join(s.proc, strconv.Itoa(pid), "cgroup"))
			if err == nil && at.UID != "" {
				s.pods[at.UID] = append(s.pods[at.UID], pid)
			}
		}
		s.at = time.Now()
	}
	return s.pods[strings.ToLower(uid)], nil
}
