package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
)

// Who may be let through.
const (
	OnlyKubelet = "kubelet" // kubelet, as well as it can be told from others
	WholeHost   = "host"    // any process of the host's network
)

// Config says where the rules go and what they let through.
type Config struct {
	// Backend is "iptables-nft", "iptables-legacy", "nftables", or "iptables" for
	// whichever of the two variants the host's rules are in. Empty: as for pods
	// (redirect.Detect).
	Backend string
	// Limit is OnlyKubelet (also when empty) or WholeHost.
	Limit string
	// IP4 and IP6 are what the source becomes; the rules in the pods must let the
	// same through. Zero: redirect.ProbeIP4 and redirect.ProbeIP6.
	IP4, IP6 netip.Addr
	// NS is the host's network namespace, which stays the caller's. nil: the
	// process's own.
	NS *netns.NS
	// Proc is the host's /proc ("/proc" when empty), KubeletNames the names of
	// the processes that may be kubelet (KubeletNames() when nil).
	Proc         string
	KubeletNames []string
	// Interval is how often Run looks; 2 s when zero.
	Interval time.Duration
	Log      *slog.Logger
}

// Probe keeps the host's rules and sets. Its methods may be called by several
// goroutines. What is wanted is noted at once; the kernel is made to match by one
// caller at a time, and who cannot have a turn before its context ends leaves the
// rest to Run.
type Probe struct {
	cfg    Config
	log    *slog.Logger
	place  *place
	finder finder
	b      backend
	others []backend // that an earlier agent may have used

	testing sync.Mutex    // held by a self-test, which takes turns
	turn    chan struct{} // holds one value, which who is at work with the kernel has
	applied map[netip.Addr]string
	looks   int    // for kubelet
	checks  int    // by Check
	sound   uint32 // the generation in which the rules were as they should be, or 0
	calm    calm

	mu       sync.Mutex // held for moments
	claims   claims
	whole    bool // claims has all that an earlier agent left, or Sync's
	removed  bool // for good
	kubelets []kubelet
	limit    Limit
	tests    []test
	problem  error // of the last look
}

// New reads what an earlier agent left; rules are first touched by Sync, Add or
// Run. It fails when the configuration is wrong or the backend's programs are
// missing.
func New(cfg Config) (*Probe, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	ns := cfg.NS
	if ns == nil {
		own, err := netns.Current()
		if err != nil {
			return nil, fmt.Errorf("probe: %w", err)
		}
		defer own.Close()
		ns = own
	}
	pl, err := openPlace(ns, cfg.Proc)
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	p := &Probe{cfg: cfg, log: cfg.Log, place: pl, finder: finder{cfg.Proc, cfg.KubeletNames, pl}, claims: claims{}}
	p.turn = make(chan struct{}, 1)
	p.turn <- struct{}{}
	if p.b, p.others, err = backends(cfg.Backend, pl); err != nil {
		return nil, errors.Join(err, pl.close())
	}
	p.takeOver()
	p.chooseLimit()
	p.log.Info("kubelet's probes are let through on the host", "backend", p.b.name(), "limit", p.limit.String())
	return p, nil
}

func (c *Config) complete() (err error) {
	if c.Limit == "" {
		c.Limit = OnlyKubelet
	}
	if c.Limit != OnlyKubelet && c.Limit != WholeHost {
		err = fmt.Errorf("probe: limit %q: want %s or %s", c.Limit, OnlyKubelet, WholeHost)
	}
	if !c.IP4.IsValid() {
		c.IP4 = redirect.ProbeIP4()
	}
	if !c.IP6.IsValid() {
		c.IP6 = redirect.ProbeIP6()
	}
	if !c.IP4.Is4() || c.IP4.IsUnspecified() {
		err = errors.Join(err, fmt.Errorf("probe: source %s: want an IPv4 address", c.IP4))
	}
	if !c.IP6.Is6() || c.IP6.Is4In6() || c.IP6.Zone() != "" || c.IP6.IsUnspecified() {
		err = errors.Join(err, fmt.Errorf("probe: source %s: want an IPv6 address", c.IP6))
	}
	if c.Proc == "" {
		c.Proc = "/proc"
	}
	if c.KubeletNames == nil {
		c.KubeletNames = KubeletNames()
	}
	if c.Interval <= 0 {
		c.Interval = 2 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return err
}

// backends makes the one of that name, and those others that there are programs
// for.
func backends(name string, p *place) (b backend, others []backend, err error) {
	if name == "" || name == "iptables" {
		detected, err := redirect.Detect()
		switch {
		case err == nil && name == "iptables" && !strings.HasPrefix(detected.Name(), "iptables-"):
			return nil, nil, fmt.Errorf("probe: %w", ErrNoIPTables)
		case err == nil:
			name = detected.Name()
		case name == "" && errors.Is(err, redirect.ErrNoIPTables):
			name = nftName
		default:
			return nil, nil, fmt.Errorf("probe: %w", err)
		}
	}
	for _, n := range []string{redirect.NameNFT, redirect.NameLegacy, nftName} {
		var one backend = &nft{p}
		var oneErr error
		if n != nftName {
			one, oneErr = newIPTables(n, p)
		}
		if ipt, ok := one.(*iptables); ok && n == name && oneErr == nil {
			ipt.tryIPv6()
		}
		switch {
		case n == name && oneErr != nil:
			return nil, nil, oneErr
		case n == name:
			b = one
		case oneErr == nil:
			others = append(others, one)
		}
	}
	if b == nil {
		return nil, nil, fmt.Errorf("probe: no backend is called %q; there are %s, %s and %s", name, redirect.NameNFT, redirect.NameLegacy, nftName)
	}
	return b, others, nil
}

// takeOver makes what an earlier agent let through our claims.
func (p *Probe) takeOver() {
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	have, err := p.b.members(ctx)
	if err != nil { // then nothing is removed before Sync says what there is
		p.log.Warn("what is let through on the host cannot be read", "err", err)
		return
	}
	for a, owner := range have {
		p.claims[a] = []string{owner}
	}
	p.applied, p.whole = have, true
}

// Sync makes pods all that is let through: the UIDs of the pods of this node that
// are in the mesh, and their addresses. Pods that Add put in since the snapshot
// was taken are taken out, so the caller takes it where it calls Add. Addresses
// that cannot be a pod's are left out; the error names them.
func (p *Probe) Sync(ctx context.Context, pods map[string][]netip.Addr) error {
	host, errs := p.hostAddrs()
	good := make(map[string][]netip.Addr, len(pods))
	for uid, addrs := range pods {
		var err error
		good[uid], err = p.usable(uid, addrs, host)
		errs = errors.Join(errs, err)
	}
	p.mu.Lock()
	if p.removed {
		p.mu.Unlock()
		return errRemoved
	}
	p.claims, p.whole = claimsOf(good, p.claims.members()), true
	p.mu.Unlock()

	done, err := p.take(ctx)
	if err != nil {
		return errors.Join(errs, err)
	}
	defer done()
	if err := p.repair(ctx); err != nil {
		return errors.Join(errs, err)
	}
	// An earlier agent may have used another backend.
	return errors.Join(errs, p.clear(ctx, p.others, p.b.name() == nftName))
}

// Add lets probes through to a pod's addresses, and to no other of the same pod.
// A refused address does not hold up the others. What the kernel refuses now, or
// what there is no time for, is tried again by Run.
func (p *Probe) Add(ctx context.Context, uid string, addrs []netip.Addr) error {
	host, errs := p.hostAddrs()
	good, err := p.usable(uid, addrs, host)
	if errs = errors.Join(errs, err); len(good) == 0 && len(addrs) > 0 {
		return errs
	}
	return errors.Join(errs, p.claim(ctx, uid, good))
}

// Del ends a pod's claims. Addresses that another pod claims stay.
func (p *Probe) Del(ctx context.Context, uid string) error {
	if err := p.claim(ctx, uid, nil); !errors.Is(err, errRemoved) {
		return err
	}
	return nil
}

func (p *Probe) claim(ctx context.Context, uid string, addrs []netip.Addr) error {
	p.mu.Lock()
	if p.removed {
		p.mu.Unlock()
		return errRemoved
	}
	p.claims.set(uid, addrs)
	unsound := p.problem != nil
	p.mu.Unlock()

	done, err := p.take(ctx)
	if err != nil {
		return fmt.Errorf("pod %s: %w", uid, err)
	}
	defer done()
	if unsound || p.applied == nil {
		return p.repair(ctx)
	}
	put, drop := p.toDo()
	if len(put)+len(drop) > 0 && p.b.edit(ctx, put, drop) != nil { // the sets may not be there
		return p.repair(ctx)
	}
	return nil
}

// errRemoved is of a call after Remove.
var errRemoved = errors.New("probe: the host's rules have been removed for good; a new agent puts them back")

// Close lets go of what the process holds. The rules stay, and go on working.
func (p *Probe) Close() error { return p.place.close() }

// Remove takes everything away, for good: the host is as it was before.
func (p *Probe) Remove(ctx context.Context) error {
	p.mu.Lock()
	p.claims, p.removed = claims{}, true
	p.mu.Unlock()
	done, err := p.take(ctx)
	if err != nil {
		return err
	}
	defer done()
	return p.clear(ctx, append([]backend{p.b}, p.others...), true)
}

// take takes a turn at the kernel.
func (p *Probe) take(ctx context.Context) (done func(), err error) {
	select {
	case <-p.turn:
		return func() { p.turn <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("probe: the host's rules are being worked at, this follows later: %w", ctx.Err())
	}
}

// clear removes what is in the hands of backends, and the sets that all those
// with iptables use.
func (p *Probe) clear(ctx context.Context, all []backend, sets bool) (errs error) {
	for _, b := range all {
		if err := b.remove(ctx); err != nil {
			errs = errors.Join(errs, fmt.Errorf("probe: remove what %s holds: %w", b.name(), err))
		}
	}
	if errs == nil && sets {
		if err := (ipsets{p.place}).destroy(); err != nil {
			errs = fmt.Errorf("probe: remove: %w", err)
		}
	}
	return errs
}

// usable are the addresses that can be let through.
func (p *Probe) usable(uid string, addrs []netip.Addr, host map[netip.Addr]bool) (usable []netip.Addr, errs error) {
	good, errs := checkPod(uid, addrs, host)
	for _, a := range good {
		if why := p.b.refuses(a); why != "" {
			errs = errors.Join(errs, fmt.Errorf("probe: pod %s: address %s: %s; its probes are not let through on it", uid, a, why))
			continue
		}
		usable = append(usable, a)
	}
	return usable, errs
}

// hostAddrs are the node's own addresses.
func (p *Probe) hostAddrs() (own map[netip.Addr]bool, err error) {
	var addrs []netlink.Addr
	err = within(p.place.ns, func(h *netlink.Handle) (err error) {
		addrs, err = h.AddrList(nil, netlink.FAMILY_ALL)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("probe: the node's addresses: %w", err)
	}
	own = map[netip.Addr]bool{}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			own[ip.Unmap()] = true
		}
	}
	return own, nil
}
