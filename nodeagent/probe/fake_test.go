package probe

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/internal/nstest"
)

// fake is a backend in memory, which can fail.
type fake struct {
	set  map[netip.Addr]string
	fail error
}

func (f *fake) name() string                                  { return "fake" }
func (f *fake) refuses(netip.Addr) string                     { return "" }
func (f *fake) generation() (uint32, bool)                    { return 0, false }
func (f *fake) drift(context.Context, rules) ([]drift, error) { return nil, f.fail }
func (f *fake) apply(context.Context, rules) error            { return f.fail }
func (f *fake) remove(context.Context) error                  { return f.fail }
func (f *fake) members(context.Context) (map[netip.Addr]string, error) {
	return maps.Clone(f.set), f.fail
}
func (f *fake) edit(_ context.Context, put map[netip.Addr]string, drop []netip.Addr) error {
	if f.fail == nil {
		maps.Copy(f.set, put)
		for _, a := range drop {
			delete(f.set, a)
		}
	}
	return f.fail
}

// An agent that cannot read what its predecessor left takes nothing of it away
// before it knows all pods, and what the kernel refuses is done later.
func TestPredecessorUnread(t *testing.T) {
	ns, _ := nstest.NewNS(t, "host")
	place, err := openPlace(ns, "/proc")
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no netlink today")
	old, one, two := netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	f := &fake{set: map[netip.Addr]string{old: "old"}, fail: broken}
	p := &Probe{cfg: Config{Limit: WholeHost}, log: slog.New(slog.DiscardHandler), place: place, b: f, claims: claims{}, turn: make(chan struct{}, 1)}
	p.turn <- struct{}{}
	defer p.Close()
	p.takeOver()
	if err := p.Add(t.Context(), "a", []netip.Addr{one}); !errors.Is(err, broken) || p.State().Problem == "" {
		t.Errorf("%v, state %+v", err, p.State())
	}
	f.fail = nil
	if err := p.Check(t.Context()); err != nil || p.State().Problem != "" {
		t.Errorf("%v, state %+v", err, p.State())
	}
	if d := cmp.Diff(map[netip.Addr]string{old: "old", one: "a"}, f.set, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("before Sync (-want +got):\n%s", d)
	}
	if err := p.Sync(t.Context(), map[string][]netip.Addr{"b": {two}}); err != nil {
		t.Fatal(err)
	}
	if len(f.set) != 1 || f.set[two] != "b" {
		t.Errorf("after Sync: %v", f.set)
	}
}
