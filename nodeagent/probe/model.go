package probe

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/netip"
)

// rules is what a backend puts in place, besides the sets.
type rules struct {
	limit    Limit
	ip4, ip6 netip.Addr // what the source becomes
	tests    []test     // the self-test's, ahead of the others
}

// source is what the source of packets to a becomes.
func (r rules) source(a netip.Addr) netip.Addr {
	if a.Is4() {
		return r.ip4
	}
	return r.ip6
}

// test is about connections of any process of the host's to one port: whether
// they are given kubelet's source.
type test struct {
	to        netip.AddrPort
	translate bool
}

// drift is a difference between what should be there and what is.
type drift struct {
	text string
	// place is of a jump that is there, but behind others'.
	place bool
}

// backend holds the sets and the rules in the kernel. Its methods are not for
// several goroutines at once.
type backend interface {
	name() string
	// refuses says why addresses like a cannot be served, or "".
	refuses(a netip.Addr) string
	// drift says what differs from r; nothing when nothing does.
	drift(ctx context.Context, r rules) ([]drift, error)
	// generation is another number after any change of anybody's to rules of the
	// kind that this backend makes; ok is false where there is no such number.
	generation() (n uint32, ok bool)
	// apply makes the sets exist and the rules those of r, each family at once
	// or not at all. What the sets hold stays.
	apply(ctx context.Context, r rules) error
	// members returns what the sets hold, which is nothing where they are not.
	members(ctx context.Context) (map[netip.Addr]string, error)
	// edit adds (or gives to another owner) and removes members.
	edit(ctx context.Context, put map[netip.Addr]string, drop []netip.Addr) error
	// remove takes the rules away, and sets that only this backend uses.
	remove(ctx context.Context) error
}

// tag marks a rule with what it was made of, so that it is known again however
// it is printed.
func tag(spec ...any) string {
	h := fnv.New64a()
	fmt.Fprint(h, spec...)
	return fmt.Sprintf("warren %016x", h.Sum64())
}
