package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	set4, set6 = "warren-probes-v4", "warren-probes-v6"
	setType    = "hash:ip"
	busyTries  = 20 // a set is in use for a moment after its last rule
	busyPause  = 50 * time.Millisecond
)

// ipsets are the two sets that the iptables rules look addresses up in, held
// over netlink. The programs of ipset are not needed.
type ipsets struct{ place *place }

func setName(v6 bool) string {
	if v6 {
		return set6
	}
	return set4
}

// with opens netlink in the place.
func (s ipsets) with(fn func(*netlink.Handle) error) (err error) {
	var h *netlink.Handle
	err = s.place.ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_NETFILTER)
		return err
	})
	if h != nil {
		defer h.Close()
	}
	if err == nil {
		err = h.SetSocketTimeout(netlinkTimeout)
	}
	if err != nil {
		return fmt.Errorf("nfnetlink: %w", err)
	}
	defer func() {
		// The library takes every error for an errno, and not all are.
		if r := recover(); r != nil {
			err = fmt.Errorf("ipset: %v", r)
		}
	}()
	return fn(h)
}

// errNoIPSet is of a kernel without the modules for sets of addresses.
var errNoIPSet = errors.New("the kernel has no ipset: load the modules ip_set and ip_set_hash_ip, or use the nftables backend")

// explainSet puts the kernel's error numbers into words.
func explainSet(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, nl.IPSetError(nl.IPSET_ERR_FIND_TYPE)), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP),
		errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("set %s: %w (%w)", name, errNoIPSet, err)
	case errors.Is(err, unix.EEXIST), errors.Is(err, nl.IPSetError(nl.IPSET_ERR_TYPE_MISMATCH)):
		return fmt.Errorf("set %s is there and of another type; see whose it is, and `ipset destroy %[1]s`: %w", name, err)
	case errors.Is(err, nl.IPSetError(errHashFull)):
		return fmt.Errorf("set %s is full: %w", name, err)
	}
	return fmt.Errorf("set %s: %w", name, err)
}

// errHashFull is IPSET_ERR_HASH_FULL, which nl does not name: the first of the
// numbers that are a type's own.
const errHashFull = nl.IPSET_ERR_PRIVATE + 256

func notThere(err error) bool { return errors.Is(err, unix.ENOENT) }

// create makes the sets that are not there.
func (s ipsets) create(families []bool) error {
	return s.with(func(h *netlink.Handle) error {
		for _, v6 := range families {
			o := netlink.IpsetCreateOptions{Replace: true, Comments: true, Family: unix.AF_INET}
			if v6 {
				o.Family = unix.AF_INET6
			}
			if err := h.IpsetCreate(setName(v6), setType, o); err != nil {
				return explainSet(setName(v6), err)
			}
		}
		return nil
	})
}

// missing names the sets that are not there.
func (s ipsets) missing(families []bool) (names []string, err error) {
	err = s.with(func(h *netlink.Handle) error {
		for _, v6 := range families {
			switch _, err := list(h, setName(v6)); {
			case notThere(err):
				names = append(names, setName(v6))
			case err != nil:
				return explainSet(setName(v6), err)
			}
		}
		return nil
	})
	return names, err
}

func (s ipsets) members(families []bool) (map[netip.Addr]string, error) {
	m := map[netip.Addr]string{}
	return m, s.with(func(h *netlink.Handle) error {
		for _, v6 := range families {
			r, err := list(h, setName(v6))
			if notThere(err) {
				continue
			} else if err != nil {
				return explainSet(setName(v6), err)
			}
			for _, e := range r.Entries {
				if a, ok := netip.AddrFromSlice(e.IP); ok {
					m[a] = e.Comment
				}
			}
		}
		return nil
	})
}

// list reads a set; a dump that others' changes broke into is read again.
func list(h *netlink.Handle, name string) (r *netlink.IPSetResult, err error) {
	const tries = 5
	for range tries {
		if r, err = h.IpsetList(name); err == nil || !errors.Is(err, unix.EINTR) {
			return r, err
		}
	}
	return r, err
}

func (s ipsets) edit(put map[netip.Addr]string, drop []netip.Addr) error {
	return s.with(func(h *netlink.Handle) (errs error) {
		for a, owner := range put {
			name := setName(a.Is6())
			err := h.IpsetAdd(name, &netlink.IPSetEntry{IP: a.AsSlice(), Comment: owner, Replace: true})
			errs = errors.Join(errs, explainSet(name, err))
		}
		for _, a := range drop {
			name := setName(a.Is6())
			err := h.IpsetDel(name, &netlink.IPSetEntry{IP: a.AsSlice(), Replace: true}) // no error if it is not there
			if !notThere(err) {
				errs = errors.Join(errs, explainSet(name, err))
			}
		}
		return errs
	})
}

func (s ipsets) destroy() error {
	return s.with(func(h *netlink.Handle) (errs error) {
		for _, v6 := range []bool{false, true} {
			var err error
			for range busyTries {
				if err = h.IpsetDestroy(setName(v6)); !errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) {
					break
				}
				time.Sleep(busyPause)
			}
			// Without ipset in the kernel there is none to destroy.
			if why := explainSet(setName(v6), err); !notThere(err) && !errors.Is(why, errNoIPSet) {
				errs = errors.Join(errs, why)
			}
		}
		return errs
	})
}
