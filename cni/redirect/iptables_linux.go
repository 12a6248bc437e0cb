package redirect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

const (
	// maxOutput bounds what we read of a program: what is in a pod's
	// namespace is the pod's to choose.
	maxOutput = 4 << 20
	maxErrors = 4 << 10
)

// The names of the iptables backends.
const (
	NameNFT    = "iptables-nft"
	NameLegacy = "iptables-legacy"
)

// iptables is the Backend over iptables-save and iptables-restore, in one of
// their variants.
type iptables struct {
	limits
	name  string
	tools map[Family]tool // IPv6 may be missing
	other *iptables       // the other variant, where the host has both
}

// tool is one family's programs, as paths.
type tool struct{ save, restore string }

func (b *iptables) Name() string { return b.name }

func (b *iptables) Apply(ns *netns.NS, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	return b.session(ns, "apply", func(ctx context.Context, s *session) error {
		c, err := s.usable(c)
		if err != nil {
			return err
		}
		return s.applied(ctx, c, func() (had bool, err error) {
			for _, f := range c.families() {
				some, err := s.apply(ctx, f, Rules(c))
				if err != nil {
					return had, err
				}
				had = had || some
			}
			return had, nil
		})
	})
}

func (b *iptables) Verify(ns *netns.NS, c Config) (diffs []string, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	err = b.session(ns, "verify", func(ctx context.Context, s *session) error {
		c, err := s.usable(c)
		if err != nil {
			return err
		}
		for _, f := range c.families() {
			have, err := s.save(ctx, f)
			if err != nil {
				return err
			}
			diffs = append(diffs, diffRules(f, Rules(c), have)...)
		}
		more, err := s.routes.diff(c)
		diffs = append(diffs, more...)
		return err
	})
	return cutDiffs(diffs), err
}

func (b *iptables) Remove(ns *netns.NS) error {
	return b.session(ns, "remove", func(ctx context.Context, s *session) error {
		return errors.Join(s.clear(ctx), s.cleared(ctx))
	})
}

func (b *iptables) StopCapture(ns *netns.NS) error {
	return b.session(ns, "stop capture", func(ctx context.Context, s *session) error { return s.stop(ctx) })
}

func (b *iptables) Foreign(ns *netns.NS) (found []string, err error) {
	return lookForeign(b.limits, ns)
}

// families are those that the host has programs for, and the kernel support.
func (s *session) families() (fs []Family) {
	for _, f := range []Family{IPv4, IPv6} {
		if _, ok := s.tools[f]; ok && (f == IPv4 || s.routes.v6.kernel) {
			fs = append(fs, f)
		}
	}
	return fs
}

// session is one call of an iptables backend.
type session struct {
	*iptables
	place
}

func (b *iptables) session(ns *netns.NS, what string, fn func(context.Context, *session) error) error {
	return b.visit(ns, what, b.name, func(ctx context.Context, p place) error { return fn(ctx, &session{b, p}) })
}

// usable leaves out of c what cannot be done and is not needed: IPv6 where the
// kernel has none, or where the host lacks ip6tables and the pod an address.
func (s *session) usable(c Config) (Config, error) {
	if !c.IPv6 {
		return c, nil
	}
	v6 := s.routes.v6
	if _, ok := s.tools[IPv6]; !ok && v6.address != "" {
		return c, fmt.Errorf("%w (address %s)", ErrNoIP6Tables, v6.address)
	} else if !ok || !v6.kernel {
		c.IPv6 = false
	}
	if !c.IPv4 && !c.IPv6 {
		return c, errors.New("only IPv6 is to be redirected, and the pod or the host has none")
	}
	return c, nil
}

// apply makes one family's tables those wanted, unless they are already, and
// says whether there had been anything of ours. It tries again when somebody
// changed them between our look and our change: the pod, or another of us if we
// could not have the lock.
func (s *session) apply(ctx context.Context, f Family, want []Table) (had bool, err error) {
	err = errChanged
	for range maxTries {
		have, saveErr := s.save(ctx, f)
		if saveErr != nil {
			return had, saveErr
		}
		had = had || slices.ContainsFunc(have, table.hasOwn)
		if len(diffRules(f, want, have)) == 0 {
			return had, nil
		}
		if restoreErr := s.restore(ctx, f, transition(f, want, have)); restoreErr != nil {
			err = restoreErr
		} else if s.locked {
			return had, nil
		}
	}
	return had, err
}

// transition is the document that leads from a state to the wanted tables.
func transition(f Family, want []Table, have state) string {
	var d document
	wanted := map[string]bool{}
	for _, t := range want {
		if t.Family == f {
			wanted[t.Name] = true
			d.fill(t, have.table(t.Name))
		}
	}
	for _, name := range tableNames() {
		if !wanted[name] {
			d.clear(have.table(name))
		}
	}
	return d.String()
}

// clear removes all that is ours.
func (s *session) clear(ctx context.Context) error {
	return s.edit(ctx, func(d *document, f Family, have state) {
		for _, name := range tableNames() {
			d.clear(have.table(name))
		}
	})
}

// stop removes what captures, and what sees to it that nothing goes round that.
// The marks stay.
func (s *session) stop(ctx context.Context) error {
	return s.edit(ctx, func(d *document, f Family, have state) {
		if mangle := have.table("mangle"); mangle.hasOwn() {
			d.fill(Table{f, "mangle", markRules()}, mangle)
		}
		d.clear(have.table("nat"))
	})
}

// edit changes what is there by a document. It goes on with the next family
// after an error, to do as much as possible.
func (s *session) edit(ctx context.Context, write func(*document, Family, state)) error {
	var errs error
	for _, f := range s.families() {
		have, err := s.save(ctx, f)
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		var d document
		write(&d, f, have)
		if d.Len() > 0 {
			errs = errors.Join(errs, s.restore(ctx, f, d.String()))
		}
	}
	return errs
}

func (s *session) save(ctx context.Context, f Family) (state, error) {
	out, err := s.run(ctx, "", s.tools[f].save)
	if err != nil {
		return nil, err
	}
	return parseSave(out)
}

func (s *session) restore(ctx context.Context, f Family, doc string) error {
	_, err := s.run(ctx, doc, s.tools[f].restore, "--noflush")
	return err
}

// run runs a program in the namespace. It is started inside and waited for
// outside.
func (s *session) run(ctx context.Context, stdin, path string, args ...string) (string, error) {
	return runTool(ctx, s.ns.Do, stdin, path, args...)
}

func runTool(ctx context.Context, within func(func() error) error, stdin, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	// Its children too: they would keep our pipes and the namespace.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		if err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); !errors.Is(err, unix.ESRCH) {
			return err
		}
		return os.ErrProcessDone
	}
	cmd.WaitDelay = time.Second
	// iptables' own lock is the host's, one for all namespaces. It gets a file
	// that only this process has, so that pods do not wait for each other.
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE=/proc/self/comm")
	out, errs := &bounded{max: maxOutput}, &bounded{max: maxErrors, cut: true}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), out, errs
	err := within(cmd.Start)
	if cmd.Process != nil { // started, even if the way back failed
		err = errors.Join(err, cmd.Wait())
	}
	switch {
	case out.over:
		err = fmt.Errorf("more than %d bytes of output: too many rules", maxOutput)
	case ctx.Err() != nil:
		err = fmt.Errorf("gave up: %w", ctx.Err())
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", path, err, shown(strings.Join(strings.Fields(errs.String()), " ")))
	}
	return out.String(), nil
}

// bounded keeps what is written to it, up to max bytes. Beyond that it fails,
// or cuts.
type bounded struct {
	strings.Builder
	max  int
	cut  bool
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) <= b.max {
		return b.Builder.Write(p)
	}
	b.over = true
	if !b.cut {
		return 0, errors.New("too much output")
	}
	b.Builder.Write(p[:b.max-b.Len()])
	return len(p), nil
}
