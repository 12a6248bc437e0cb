package resolve

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds of what is kept and asked at a time.
const (
	maxEntries = 4096
	maxFlights = 256
	maxAddrs   = 64 // of one answer
)

// How long an answer is kept: as it says itself, within these.
const (
	minTTL      = time.Second
	maxTTL      = 10 * time.Minute
	minNegative = time.Second
	maxNegative = 30 * time.Second
	// failureTTL spares resolvers that fail a question for each connection.
	failureTTL = time.Second
	// staleFor is how long an answer serves on when its successor cannot be had.
	staleFor = 5 * time.Minute
)

// ErrNoAddress says that a name exists, or not, but has no address that is wanted.
var ErrNoAddress = errors.New("no A/AAAA records")

// ErrBusy says that too many names are asked for at once.
var ErrBusy = errors.New("too many DNS questions at once")

// Config says who is asked. The zero value asks those of /etc/resolv.conf.
type Config struct {
	Servers []netip.AddrPort // instead of those in ResolvConf
	// ResolvConf is read anew when it changes.
	ResolvConf string
	// Timeout bounds one question, all servers and attempts together. Default 5 s.
	Timeout time.Duration
	// Observe is told how a question ended; nil: nobody is.
	Observe func(err error)
}

// Families says which addresses are of use.
type Families struct {
	IPv4, IPv6 bool
	// Prefer4: where there are both, those of IPv4 are returned.
	Prefer4 bool
}

// Resolver may be used from any goroutine.
type Resolver struct {
	cfg     Config
	servers servers
	now     func() time.Time
	ctx     context.Context
	stop    context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex
	entries map[key]*entry
	flights map[key]*flight
}

type key struct {
	name string // absolute, lower case
	kind uint16 // dns.TypeA or dns.TypeAAAA
}

// entry is what is known of a name: addresses, or why there are none.
type entry struct {
	addrs []netip.Addr
	err   error
	until time.Time
	stale time.Time // until when it serves on when nothing better can be had
}

// flight is a question under way.
type flight struct {
	done chan struct{}
	e    *entry // set before done is closed
}

// New returns a resolver. Close ends it.
func New(cfg Config) *Resolver {
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Second
	}
	r := &Resolver{cfg: cfg, now: time.Now, entries: make(map[key]*entry), flights: make(map[key]*flight)}
	r.servers = servers{fixed: cfg.Servers, path: cfg.ResolvConf}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// Close ends all questions and returns when they have ended.
func (r *Resolver) Close() {
	r.stop()
	r.wg.Wait()
}

// Resolve returns the addresses of a host, of one family: the preferred one if it
// has any. The result is shared and must not be changed.
func (r *Resolver) Resolve(ctx context.Context, host string, f Families) ([]netip.Addr, error) {
	name, err := absolute(host)
	if err != nil {
		return nil, err
	}
	var kinds []uint16
	if f.IPv4 {
		kinds = append(kinds, dns.TypeA)
	}
	if f.IPv6 {
		kinds = append(kinds, dns.TypeAAAA)
	}
	if len(kinds) == 0 {
		return nil, fmt.Errorf("%s: %w of a family that can be used", host, ErrNoAddress)
	}
	if !f.Prefer4 {
		slices.Reverse(kinds)
	}
	waits := make([]func(context.Context) (*entry, error), len(kinds))
	for i, k := range kinds { // all are asked before the first is waited for
		waits[i] = r.ask(key{name, k})
	}
	for _, wait := range waits {
		e, werr := wait(ctx)
		if werr == nil && len(e.addrs) > 0 {
			return e.addrs, nil
		}
		if werr == nil {
			werr = e.err
		}
		if err == nil || errors.Is(err, ErrNoAddress) { // a failure says more than an empty answer
			err = werr
		}
	}
	return nil, fmt.Errorf("%s: %w", host, err)
}

// absolute checks a hostname and makes it absolute: nothing is appended to what a
// control plane names.
func absolute(host string) (string, error) {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if _, ok := dns.IsDomainName(name); !ok || name == "" || strings.ContainsAny(name, "\\ *\x00") {
		return "", fmt.Errorf("%.260q is no hostname that can be resolved", host)
	}
	return name + ".", nil
}

// ask looks into the cache, and starts or joins a flight if it must. What it
// returns waits for the answer.
func (r *Resolver) ask(k key) func(context.Context) (*entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entries[k]; e != nil && r.now().Before(e.until) {
		return func(context.Context) (*entry, error) { return e, nil }
	}
	f := r.flights[k]
	switch {
	case f != nil:
	case r.ctx.Err() != nil:
		return func(context.Context) (*entry, error) { return nil, context.Canceled }
	case len(r.flights) >= maxFlights:
		return func(context.Context) (*entry, error) { return nil, ErrBusy }
	default:
		f = &flight{done: make(chan struct{})}
		r.flights[k] = f
		r.wg.Go(func() { r.fly(k, f) })
	}
	return func(ctx context.Context) (*entry, error) {
		select {
		case <-f.done:
			return f.e, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// fly asks a question for all who wait for its answer.
func (r *Resolver) fly(k key, f *flight) {
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.Timeout)
	defer cancel()
	a, err := r.exchange(ctx, k)
	if r.cfg.Observe != nil {
		r.cfg.Observe(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flights, k)
	f.e = r.remember(k, a, err)
	close(f.done)
}

// remember keeps an answer, or what came of asking. Where asking failed, the last
// answer serves on.
func (r *Resolver) remember(k key, a answer, err error) *entry {
	now := r.now()
	e := &entry{addrs: a.addrs, err: err}
	switch {
	case err == nil && len(a.addrs) > 0:
		e.until = now.Add(clamp(a.ttl, minTTL, maxTTL))
		e.stale = e.until.Add(staleFor)
	case err == nil:
		e.err = fmt.Errorf("%w%s", ErrNoAddress, a.why)
		e.until = now.Add(clamp(a.ttl, minNegative, maxNegative))
	default:
		if old := r.entries[k]; old != nil && len(old.addrs) > 0 && now.Before(old.stale) {
			e.addrs, e.err, e.stale = old.addrs, nil, old.stale
		}
		e.until = now.Add(failureTTL)
	}
	if len(r.entries) >= maxEntries && r.entries[k] == nil {
		r.evict(now)
	}
	r.entries[k] = e
	return e
}

// evict makes room: what has ended goes, else any one.
func (r *Resolver) evict(now time.Time) {
	for k, e := range r.entries {
		if now.After(e.until) && now.After(e.stale) {
			delete(r.entries, k)
		}
	}
	for k := range r.entries {
		if len(r.entries) < maxEntries {
			return
		}
		delete(r.entries, k)
	}
}

func clamp(d, low, high time.Duration) time.Duration { return min(max(d, low), high) }
