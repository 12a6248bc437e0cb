package delegated

import (
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

// checkPIDs refuses to name processes that the agent would know by other numbers.
func checkPIDs(proc string) error {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return err
	}
	host, err := os.Readlink(filepath.Join(proc, "1/ns/pid"))
	if err == nil && own == host || own == initialPIDs {
		return nil
	}
	return fmt.Errorf("this process is in PID namespace %s: attesting by PID needs the host's (hostPID: true)", own)
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
		err := s.attest(ctx, pod, p, id, last, emit)
		if !errors.Is(err, errNotThisOne) {
			return err
		}
	}
	return errors.New("delegated identity API: the pod has no process to attest")
}

// errNotThisOne is of a process to which SPIRE gives other identities; another container of the pod may have the one.
var errNotThisOne = errors.New("another process may be given the identity")

func (s *Source) attest(ctx context.Context, pod svid.Pod, p *podproc.Process, id spiffeid.ID, last bool, emit func(svid.Update)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.done.Go(func() {
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
	case errors.Is(context.Cause(ctx), podproc.ErrEnded):
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
	if err != nil || p.Name() == sandbox {
		err = errors.Join(err, p.Close())
		return svid.Proof{}, nil, errors.Join(fmt.Errorf("delegated identity API: pod %s has no running container yet", pod.UID), err)
	}
	ended := make(chan struct{})
	s.done.Go(func() {
		defer close(ended)
		_ = p.Wait(ctx)
		_ = p.Close()
	})
	return proofOf(p), ended, nil
}

// prove finds the processes that are the pod's, those of applications first.
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
	for _, pid := range pids {
		p, err := podproc.Open(s.cfg.Proc, pid)
		if err == nil {
			if err = p.Prove(pod.UID, pod.Netns); err == nil {
				proven = append(proven, p)
				continue
			}
			err = errors.Join(err, p.Close())
		}
		errs = append(errs, err)
	}
	if len(proven) == 0 {
		return nil, fmt.Errorf("delegated identity API: pod %s has no running container yet: %w", pod.UID, errors.Join(errs...))
	}
	slices.SortStableFunc(proven, func(a, b *podproc.Process) int {
		if pa, pb := a.Name() == sandbox, b.Name() == sandbox; pa != pb {
			return map[bool]int{true: 1, false: -1}[pa]
		}
		return int(int64(a.Start) - int64(b.Start)) //nolint:gosec // ticks since boot
	})
	for len(proven) > maxTries {
		errs = append(errs, proven[len(proven)-1].Close())
		proven = proven[:len(proven)-1]
	}
	return proven, nil
}

const (
	sandbox  = "pause" // it lives as long as the pod, and SPIRE cannot attest it
	maxTries = 8       // processes of one pod
	scanAge  = 200 * time.Millisecond
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
