package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Config says what to measure.
type Config struct {
	Bins    string  // folder with our programs
	Peer    *Proxy  // what the others are held against; nil: nothing
	Proxies []Proxy // measured beside ours
	NoOurs  bool    // leave out the proxy in Bins

	Only     *regexp.Regexp // which loads, by id; nil: all
	Subjects *regexp.Regexp // which subjects, by name; nil: all
	Rounds   int            // how often each figure is taken
	Warm     time.Duration  // traffic before a measurement's window
	Length   time.Duration  // of the window
	Idle     int            // idle connections
	Crowd    int            // pods a node, for the loads that compare few and many
	Patience time.Duration  // how long at most to wait for a quiet machine before each measurement
	Alone    bool           // take turns with other runs on this machine

	JSON, HTML string // files to write; empty: none
	Profiles   string // folder for CPU profiles of the proxies under each load; empty: none
}

// prefix begins the names of all that is made outside the namespaces.
const prefix = "wbench"

// List prints the loads and what they are called.
func List(c Config, out io.Writer) {
	for _, l := range loads(c) {
		fmt.Fprintf(out, "%-26s %s\n", l.id, l.title)
	}
	fmt.Fprintf(out, "%-26s %s\n", addsID, addsTitle)
	for _, n := range crowdSizes {
		fmt.Fprintf(out, "%-26s %s\n", crowdID(n), crowdTitle(n))
	}
}

func (c *Config) check() (err error) {
	if c.Rounds < 1 {
		err = errors.Join(err, fmt.Errorf("-rounds %d: at least one", c.Rounds))
	}
	if c.Length <= 0 || c.Warm < 0 {
		err = errors.Join(err, fmt.Errorf("-length %s and -warm %s: a window needs a length", c.Length, c.Warm))
	}
	if c.Idle < 1 || c.Idle > 60_000 {
		err = errors.Join(err, fmt.Errorf("-idle %d: from 1 to 60000, by the ports of one pod", c.Idle))
	}
	if c.Crowd < 3 || c.Crowd > 250 {
		err = errors.Join(err, fmt.Errorf("-crowd %d: from 3 to 250, by the addresses of a node", c.Crowd))
	}
	all := c.Proxies
	if c.Peer != nil {
		all = append(all, *c.Peer)
	}
	for _, p := range all {
		if _, serr := os.Stat(p.Path); serr != nil {
			err = errors.Join(err, fmt.Errorf("proxy %s: %w", p.Name, serr))
		}
	}
	return err
}

// bench is one run.
type bench struct {
	Config
	out    io.Writer
	report *Report
	beds   []*bed
	made   int // beds so far
}

// Run measures, prints and writes the files. It removes all it made, also when
// ctx ends early; what has been measured by then is still written.
func Run(ctx context.Context, c Config, out io.Writer) (err error) {
	if err := c.check(); err != nil {
		return err
	}
	if c.Bins, err = filepath.Abs(c.Bins); err != nil {
		return err
	}
	if err := errors.Join(raiseFDs(), removeDead()); err != nil {
		return err
	}
	b := &bench{Config: c, out: out, report: newReport(c)}
	defer func() { err = errors.Join(err, b.close(0), b.write()) }()
	b.report.printHead(out)
	var few, many []load
	for _, l := range loads(c) {
		switch {
		case !c.wanted(l.id):
		case l.crowd:
			many = append(many, l)
		default:
			few = append(few, l)
		}
	}
	var failed error
	if len(few)+len(many) > 0 {
		subjects, err := b.subjects(ctx)
		if err != nil {
			return err
		}
		failed = errors.Join(b.measureAll(ctx, few, subjects), b.crowded(ctx, many, subjects))
	}
	failed = errors.Join(failed, b.close(0), b.crowds(ctx))
	if c.wanted(addsID) && !c.NoOurs && ctx.Err() == nil {
		failed = errors.Join(failed, b.close(0), b.adds(ctx))
	}
	return failed
}

func (c Config) wanted(id string) bool { return c.Only == nil || c.Only.MatchString(id) }

func (c Config) proxies() []Proxy {
	var all []Proxy
	if !c.NoOurs {
		all = append(all, Proxy{Name: "warren", Path: filepath.Join(c.Bins, "proxy")})
	}
	all = append(all, c.Proxies...)
	if c.Peer != nil {
		all = append(all, *c.Peer)
	}
	return all
}

// bed makes one more bed.
func (b *bench) bed(ctx context.Context, p Proxy, pods int) (*bed, error) {
	b.made++
	bed, err := newBed(ctx, b.Config, b.made, p, pods)
	if err == nil {
		b.beds = append(b.beds, bed)
	}
	return bed, err
}

// subjects are the proxies, each on a bed of its own, and what the wire does
// without them.
func (b *bench) subjects(ctx context.Context) ([]subject, error) {
	var proxies []subject
	for _, p := range b.proxies() {
		if b.Subjects != nil && !b.Subjects.MatchString(p.Name) {
			continue
		}
		bed, err := b.bed(ctx, p, 0)
		if err != nil {
			return nil, err
		}
		s := subject{name: p.Name, bed: bed}
		if b.Peer != nil && p.Name != b.Peer.Name {
			s.base = b.Peer.Name
		}
		proxies = append(proxies, s)
	}
	var all []subject
	for _, s := range []subject{{name: "direct TCP", kind: direct}, {name: "plain TLS", kind: overTLS}} {
		if b.Subjects != nil && !b.Subjects.MatchString(s.name) {
			continue
		}
		if len(b.beds) == 0 {
			if _, err := b.bed(ctx, Proxy{Name: "no proxy"}, 0); err != nil {
				return nil, err
			}
		}
		s.bed = b.beds[0]
		all = append(all, s)
	}
	return append(all, proxies...), nil
}

// crowded measures each proxy with few pods against the same with many.
func (b *bench) crowded(ctx context.Context, loads []load, few []subject) error {
	if len(loads) == 0 || ctx.Err() != nil {
		return ctx.Err()
	}
	before := len(b.beds)
	var all []subject
	for _, s := range few {
		if s.kind != proxied {
			continue
		}
		name := s.name
		s.name, s.base = name+", few pods", ""
		bed, err := b.bed(ctx, s.bed.proxy, b.Crowd)
		if err != nil {
			return errors.Join(err, b.close(before))
		}
		all = append(all, s, subject{name: fmt.Sprintf("%s, %d pods a node", name, b.Crowd), bed: bed, base: s.name})
	}
	return errors.Join(b.measureAll(ctx, loads, all), b.close(before))
}

func (b *bench) measureAll(ctx context.Context, loads []load, subjects []subject) error {
	var errs []error
	for _, l := range loads {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		r, err := b.measure(ctx, l, subjects)
		if r != nil {
			b.report.Loads = append(b.report.Loads, r)
			r.print(b.out)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// measure takes turns among the subjects, round by round. A subject that fails
// is left out of the load's later rounds.
func (b *bench) measure(ctx context.Context, l load, subjects []subject) (*LoadReport, error) {
	r := newLoadReport(l)
	var in []subject
	for _, s := range subjects {
		if s.kind == overTLS && (l.noTLS || l.way != across) {
			continue
		}
		in = append(in, s)
		r.Subjects = append(r.Subjects, &SubjectReport{Name: s.name, Base: s.base})
	}
	rounds := b.Rounds
	if l.rounds > 0 {
		rounds = min(rounds, l.rounds)
	}
	var errs []error
	for round := range rounds {
		if err := b.round(ctx, l, in, r, round == 0); err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	r.sum()
	return r, errors.Join(errs...)
}

func (b *bench) round(ctx context.Context, l load, in []subject, r *LoadReport, first bool) error {
	if b.Alone {
		free, err := onlyOne(ctx)
		if err != nil {
			return err
		}
		defer free()
	}
	var errs []error
	for i, s := range in {
		to := r.Subjects[i]
		if to.Error != "" {
			continue
		}
		f, err := b.once(ctx, l, s, first)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			to.Error = err.Error()
			errs = append(errs, fmt.Errorf("%s, %s: %w", l.id, s.name, err))
			continue
		}
		to.Rounds = append(to.Rounds, f)
	}
	return errors.Join(errs...)
}

func (b *bench) once(ctx context.Context, l load, s subject, first bool) (figures, error) {
	ctx, cancel := context.WithTimeout(ctx, b.Patience+b.Warm+b.Length+2*time.Minute)
	defer cancel()
	if first {
		if err := s.touch(ctx, l.way); err != nil {
			return nil, fmt.Errorf("%w%s", err, s.lastWords())
		}
	}
	if err := quiet(ctx, b.Patience); err != nil {
		return nil, err
	}
	profiled := b.profile(ctx, l, s)
	f, err := l.run(ctx, b.Config, s)
	err = errors.Join(err, <-profiled)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w%s", err, s.lastWords())
	}
	return f, err
}

// profile begins to take CPU profiles of the subject's proxies, where they are
// asked for, over as many whole seconds as the measurement has. Each load's
// last round stays.
func (b *bench) profile(ctx context.Context, l load, s subject) <-chan error {
	done := make(chan error, len(s.bed.Nodes))
	seconds := int((b.Warm + b.Length).Seconds())
	if b.Profiles == "" || s.kind != proxied || seconds < 1 {
		close(done)
		return done
	}
	go func() {
		defer close(done)
		var wg sync.WaitGroup
		errs := make([]error, len(s.bed.Nodes))
		for i, n := range s.bed.Nodes {
			wg.Go(func() {
				text, err := n.Profile(ctx, seconds)
				if err == nil {
					name := strings.NewReplacer("/", "-", " ", "-", ",", "").Replace(l.id + "-" + s.name + "-" + n.Name + ".pprof")
					err = os.WriteFile(filepath.Join(b.Profiles, name), text, 0o644)
				}
				errs[i] = err
			})
		}
		wg.Wait()
		done <- errors.Join(errs...)
	}()
	return done
}

// close removes the beds from the n-th on.
func (b *bench) close(n int) error {
	var errs []error
	for _, bed := range b.beds[min(n, len(b.beds)):] {
		errs = append(errs, bed.close())
	}
	b.beds = b.beds[:min(n, len(b.beds))]
	return errors.Join(errs...)
}
