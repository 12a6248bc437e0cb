package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxOutput = 4 << 20 // of a program
	maxErrors = 2 << 10
)

// exitError is of a program that ran and refused.
type exitError struct {
	program string
	said    string
	err     error
}

func (e *exitError) Error() string {
	return fmt.Sprintf("%s: %v: %s", e.program, e.err, e.said)
}

func (e *exitError) Unwrap() error { return e.err }

// run runs a program in the place. It is started inside and waited for outside.
func (p *place) run(ctx context.Context, stdin, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { // its children too: they would keep our pipes
		if err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); !errors.Is(err, unix.ESRCH) {
			return err
		}
		return os.ErrProcessDone
	}
	cmd.WaitDelay = time.Second
	out, errs := &bounded{max: maxOutput}, &bounded{max: maxErrors, cut: true}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), out, errs
	err := p.do(cmd.Start)
	if cmd.Process != nil { // started, even if the way back failed
		err = errors.Join(err, cmd.Wait())
	}
	name := strings.TrimSpace(filepath.Base(path) + " " + strings.Join(args, " "))
	switch {
	case err == nil:
		return out.String(), nil
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s: gave up: %w", name, ctx.Err())
	}
	return "", &exitError{name, strings.Join(strings.Fields(errs.String()), " "), err}
}

// bounded keeps the beginning of what is written to it. Without cut, more is an
// error.
type bounded struct {
	bytes.Buffer
	max int
	cut bool
}

var errTooMuch = errors.New("too much output")

func (b *bounded) Write(p []byte) (int, error) {
	room := min(len(p), b.max-b.Len())
	b.Buffer.Write(p[:room])
	if room < len(p) && !b.cut {
		return room, errTooMuch
	}
	return len(p), nil
}
