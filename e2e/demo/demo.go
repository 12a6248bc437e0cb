// Package demo is the story that `make demo` tells: a two-node mesh on one
// machine, requests through it, and for each the proof of how it travelled.
//
// Kind: root of the demo program; it is built on e2e/onehost.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// Config says how to run the demo.
type Config struct {
	Bins  string // folder with the programs
	Proxy string // another proxy's path; empty: ours
	Keep  bool   // wait for the context's end before tearing down
}

const (
	prefix  = "warren-demo"
	timeout = 90 * time.Second
)

// Run builds the mesh, tells the story and removes everything again, also
// when ctx ends half way or a step fails.
func Run(ctx context.Context, c Config, out io.Writer) (err error) {
	began := time.Now()
	bins, err := filepath.Abs(c.Bins)
	if err != nil {
		return err
	}
	if err := onehost.RemoveLeftovers(prefix); err != nil {
		return fmt.Errorf("an earlier demo left something behind: %w", err)
	}
	dir, err := os.MkdirTemp("", prefix+"-")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "building a mesh of two nodes (logs: %s)\n", dir)
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	mesh, err := onehost.New(bounded, onehost.Options{Prefix: prefix, Dir: dir, Bins: bins, Proxy: c.Proxy})
	if err != nil {
		return errors.Join(interrupted(ctx, err), keepLogs(out, dir))
	}
	defer func() { err = errors.Join(err, tearDown(out, mesh, dir, err != nil)) }()

	s := &story{mesh: mesh, out: out}
	defer s.close()
	if err := s.tell(bounded); err != nil {
		return interrupted(ctx, err)
	}
	fmt.Fprintf(out, "\n%d requests as expected, %.1f s\n", s.told, time.Since(began).Seconds())
	if c.Keep {
		s.invite(dir)
		<-ctx.Done()
	}
	return nil
}

// interrupted says plainly that the user ended the demo, where that is the cause.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

func keepLogs(out io.Writer, dir string) error {
	fmt.Fprintf(out, "the logs are kept in %s\n", dir)
	return nil
}

// tearDown removes the mesh and proves that nothing of it is left.
func tearDown(out io.Writer, m *onehost.Mesh, dir string, failed bool) error {
	if err := m.Close(); err != nil {
		return errors.Join(fmt.Errorf("tear down: %w", err), keepLogs(out, dir))
	}
	left, err := onehost.Leftovers(prefix)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("tear down left behind: %v", left)
	}
	if failed {
		return keepLogs(out, dir)
	}
	fmt.Fprintln(out, "torn down: no namespace, link, process or socket of the demo is left")
	return os.RemoveAll(dir)
}
