//go:build istiod

package istiod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// reply is what a server said.
type reply struct {
	who  string // namespace/name
	sees netip.Addr
}

// call makes one connection as an application does.
func call(from *onehost.Pod, to netip.AddrPort) (reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, to)
	if err != nil {
		return reply{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "ping"); err != nil {
		return reply{}, err
	}
	if err := c.CloseWrite(); err != nil {
		return reply{}, err
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return reply{}, err
	}
	var who, seen string
	if _, err := fmt.Sscanf(string(b), "%s %s\nping", &who, &seen); err != nil {
		return reply{}, fmt.Errorf("answer %q: %w", b, err)
	}
	ap, err := netip.ParseAddrPort(seen)
	return reply{who, ap.Addr().Unmap()}, err
}

func at(ip string, port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(port))
}

func on(p *onehost.Pod, port int) netip.AddrPort { return netip.AddrPortFrom(p.IP4(), uint16(port)) }

// patience is for a change to come from the control plane to every proxy. From the first
// success on, or the first denial, there must be no other outcome: steady times it is
// looked at.
const (
	patience = 45 * time.Second
	steady   = 6
)

// eventually waits for what a change brings about.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond) // a poll's interval, not a wait for a result
	}
}

// reaches waits for a call that one of who answers, and then has every call end so.
func reaches(t *testing.T, from *onehost.Pod, to netip.AddrPort, who ...string) {
	t.Helper()
	once := func() error {
		r, err := call(from, to)
		if err == nil && len(who) > 0 && !slices.Contains(who, r.who) {
			err = fmt.Errorf("%s answered", r.who)
		}
		return err
	}
	what := fmt.Sprintf("%s reaches %s at %s", from.Spec.Name, who, to)
	eventually(t, what, once)
	for n := range steady {
		if err := once(); err != nil {
			t.Fatalf("%s: call %d after the first success: %v", what, n+1, err)
		}
	}
}

// refused waits for a call that fails for the reason that a proxy gives in its log, and
// then has every call fail, soon and for that reason alone.
func (w *world) refused(t *testing.T, from *onehost.Pod, to netip.AddrPort, because string) {
	t.Helper()
	what := fmt.Sprintf("%s is refused at %s (%s)", from.Spec.Name, to, because)
	eventually(t, what, func() error {
		logs := w.AccessLogs()
		r, err := call(from, to)
		if err == nil {
			return fmt.Errorf("%s answered", r.who)
		}
		return errors.Join(logged(t, logs, from, because, 1), notLate(err))
	})
	logs := w.AccessLogs()
	for n := range steady {
		r, err := call(from, to)
		if err == nil {
			t.Fatalf("%s: %s answered call %d after the first refusal", what, r.who, n+1)
		}
		if err := notLate(err); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	if err := logged(t, logs, from, because, steady); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// notLate is the error of a call that nobody answered: one that was refused ends at once.
func notLate(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("nobody refused it: %w", err)
	}
	return nil
}

// logged waits until so many calls of a pod are in the logs with an error for this reason.
func logged(t *testing.T, logs onehost.LogMark, from *onehost.Pod, because string, calls int) error {
	t.Helper()
	deadline := time.Now().Add(3 * time.Second)
	for {
		lines, err := logs.Lines()
		if err != nil {
			return err
		}
		var errs []string
		found := 0
		for _, l := range lines {
			src, err := netip.ParseAddrPort(l.Src)
			if err != nil || l.Err == "" || !slices.Contains(from.IPs, src.Addr()) {
				continue
			}
			errs = append(errs, l.Direction+": "+l.Err)
			if strings.Contains(l.Err, because) {
				found++
			}
		}
		switch {
		case found >= calls:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%d of %d calls failed for that reason: %q", found, calls, errs)
		}
		time.Sleep(10 * time.Millisecond) // a poll's interval
	}
}

// spread calls until each of who has answered; nobody else may, and from the first
// success on every call is answered.
func spread(t *testing.T, from *onehost.Pod, to netip.AddrPort, who ...string) {
	t.Helper()
	what := fmt.Sprintf("%s reaches all of %v at %s", from.Spec.Name, who, to)
	seen := map[string]bool{}
	eventually(t, what, func() error {
		r, err := call(from, to)
		if err != nil {
			clear(seen)
			return err
		}
		if !slices.Contains(who, r.who) {
			clear(seen)
			return fmt.Errorf("%s answered", r.who)
		}
		if seen[r.who] = true; len(seen) < len(who) {
			return fmt.Errorf("only %v so far", seen)
		}
		return nil
	})
	for n := range steady {
		if r, err := call(from, to); err != nil || !slices.Contains(who, r.who) {
			t.Fatalf("%s: call %d after all had answered: %q, %v", what, n+1, r.who, err)
		}
	}
}
