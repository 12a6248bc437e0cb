package redirect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

const (
	lockPoll = 5 * time.Millisecond
	// lockPatience is how long another of our processes is waited for. Any
	// process in the pod can take the same lock, and keep it.
	lockPatience = time.Second
)

// turns lets the callers of one process into a namespace one after the other.
type turns struct {
	mu    sync.Mutex
	taken map[netns.ID]chan struct{} // closed at the end of the turn
}

func (t *turns) take(ctx context.Context, id netns.ID) (done func(), err error) {
	for {
		t.mu.Lock()
		turn, busy := t.taken[id]
		if !busy {
			if t.taken == nil {
				t.taken = map[netns.ID]chan struct{}{}
			}
			turn = make(chan struct{})
			t.taken[id] = turn
		}
		t.mu.Unlock()
		if !busy {
			return func() { t.end(id); close(turn) }, nil
		}
		select {
		case <-turn:
		case <-ctx.Done():
			return nil, fmt.Errorf("another call is at work in the namespace: %w", ctx.Err())
		}
	}
}

func (t *turns) end(id netns.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.taken, id)
}

// lock takes the namespace for one process of ours, on the whole machine. The
// lock is on the namespace itself, so that there is no file to agree on or to
// leave behind. It is a courtesy among our processes and no more: who cannot
// have it goes on without it, after some patience, and looks again at what was
// done. Otherwise a process in the pod, which needs no privilege for that,
// could keep the pod from being redirected, verified or released.
func lock(ctx context.Context, ns *netns.NS, patience time.Duration) (unlock func(), locked bool, err error) {
	own, err := ns.Reopen()
	if err != nil {
		return nil, false, err
	}
	enough := time.NewTimer(patience)
	defer enough.Stop()
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := unix.Flock(int(own.File().Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { own.Close() }, true, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			own.Close()
			return nil, false, os.NewSyscallError("flock", err)
		}
		select {
		case <-ctx.Done():
			own.Close()
			return nil, false, fmt.Errorf("another process is at work in the namespace: %w", ctx.Err())
		case <-enough.C:
			own.Close()
			return func() {}, false, nil
		case <-tick.C:
		}
	}
}
