package onehost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
)

// process is one program of the mesh, running in a namespace, its output in a
// log file of its own.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has been reaped
	err  error         // valid after done
	hard bool          // stop kills it
}

// command says what to run. An entry of env replaces one of the same name
// from the environment this program runs in.
type command struct {
	name string
	bin  string
	args []string
	env  []string
	dir  string // working directory
}

// start runs c inside ns. The child inherits the namespace from the thread
// that forks it; this program itself does not move.
func start(ns *netns.NS, logDir string, c command) (*process, error) {
	p := &process{name: c.name, log: filepath.Join(logDir, c.name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(c.bin, c.args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = c.dir, out, out
	p.cmd.Env = append(os.Environ(), c.env...)
	if err := ns.Do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// stop asks the process to end and waits; after the grace it is killed.
func (p *process) stop(grace time.Duration) error {
	if p == nil {
		return nil
	}
	if p.hard {
		return p.kill()
	}
	err := p.cmd.Process.Signal(os.Interrupt)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-p.done:
		return err
	case <-time.After(grace):
		return errors.Join(err, fmt.Errorf("%s did not stop within %s (its log: %s)", p.name, grace, p.log), p.kill())
	}
}

// kill ends the process at once, as a crash would.
func (p *process) kill() error {
	if p == nil {
		return nil
	}
	err := p.cmd.Process.Kill()
	<-p.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return p != nil
	}
}

// until calls ok every 10 ms until it returns nil, ctx ends, or the process
// that is waited for has died.
func (p *process) until(ctx context.Context, what string, ok func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before %s: %v\n%s", p.name, what, p.err, tail(p.log, 15))
		case <-ctx.Done():
			return fmt.Errorf("%s: waiting until %s: %w (last: %v)\n%s", p.name, what, ctx.Err(), err, tail(p.log, 15))
		case <-tick.C:
		}
	}
}

// supervisor remembers what was started, so that nothing outlives the mesh.
type supervisor struct {
	mu    sync.Mutex
	procs []*process // guarded by mu
}

func (s *supervisor) add(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.procs = append(s.procs, p)
}

// stopAll stops everything, newest first, all at the same time within grace.
func (s *supervisor) stopAll(grace time.Duration) error {
	s.mu.Lock()
	procs := s.procs
	s.procs = nil
	s.mu.Unlock()
	errs := make([]error, len(procs))
	var wg sync.WaitGroup
	for i, p := range procs {
		wg.Go(func() { errs[i] = p.stop(grace) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// output runs a short command inside ns.
func output(ns *netns.NS, bin string, args ...string) (string, error) {
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.Command(bin, args...).Output()
		return err
	})
	return string(out), err
}
