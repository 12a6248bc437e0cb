package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

const (
	legacyTables  = "/proc/thread-self/net/ip_tables_names"
	legacyTables6 = "/proc/thread-self/net/ip6_tables_names"

	// How the kernel hands out the tables of the legacy variant: the numbers of
	// the questions and, of each answer, where what we read is.
	soGetInfo, soGetEntries  = 64, 65
	tableNameLen             = 32
	infoSize, infoEntrySize  = 84, 80 // struct ipt_getinfo, its field size
	entriesHead              = 40     // struct ipt_get_entries before the entries
	targetName, targetHead   = 2, 32  // struct xt_entry_target: its name, its end
	chainHeadTarget          = "ERROR"
	targetNameLen            = 29
	entryV4Next, entryV4Size = 90, 112 // struct ipt_entry: next_offset, its end
	entryV6Next, entryV6Size = 142, 168
	countersSize             = 16 // struct xt_counters, the last field of an entry
)

// legacyChain is a chain that somebody made with the legacy variant.
type legacyChain struct {
	family      Family
	table, name string
}

// legacyChains lists them without that variant's programs: a host that has
// none may have had. Asked for no table, the kernel makes none.
func legacyChains(ns *netns.NS) (chains []legacyChain, err error) {
	err = ns.Do(func() error {
		for f, path := range map[Family]string{IPv4: legacyTables, IPv6: legacyTables6} {
			names, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			for _, table := range strings.Fields(string(names)) {
				entries, err := legacyEntries(f, table)
				if err != nil {
					return fmt.Errorf("legacy %s table %s: %w", f, shown(table), err)
				}
				for _, name := range chainHeads(f, entries) {
					chains = append(chains, legacyChain{f, table, name})
				}
			}
		}
		return nil
	})
	return chains, err
}

// LegacyDigest is what a namespace's tables of the legacy variant are known by: another
// one says that somebody has changed them. The kernel tells nobody of that.
func LegacyDigest(ns *netns.NS) (uint64, error) {
	h := fnv.New64a()
	err := ns.Do(func() error {
		for _, family := range []struct {
			f     Family
			names string
		}{{IPv4, legacyTables}, {IPv6, legacyTables6}} {
			names, err := os.ReadFile(family.names)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			tables := strings.Fields(string(names))
			slices.Sort(tables)
			for _, table := range tables {
				entries, err := legacyEntries(family.f, table)
				if err != nil {
					return fmt.Errorf("legacy %s table %s: %w", family.f, shown(table), err)
				}
				forgetCounters(family.f, entries)
				h.Write([]byte(table + "\x00"))
				h.Write(entries)
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("redirect: %w", err)
	}
	return h.Sum64() | 1, nil // 0 is none's
}

// forgetCounters zeroes what traffic changes in a table's entries.
func forgetCounters(f Family, entries []byte) {
	next, head := entryV4Next, entryV4Size
	if f == IPv6 {
		next, head = entryV6Next, entryV6Size
	}
	for len(entries) >= head {
		clear(entries[head-countersSize : head])
		size := int(binary.NativeEndian.Uint16(entries[next:]))
		if size < head || size > len(entries) {
			return
		}
		entries = entries[size:]
	}
}

// legacyEntries reads a table of the thread's namespace.
func legacyEntries(f Family, table string) ([]byte, error) {
	domain, level := unix.AF_INET, unix.SOL_IP
	if f == IPv6 {
		domain, level = unix.AF_INET6, unix.SOL_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	const tries = 5 // the table may grow in between
	for range tries {
		info := make([]byte, infoSize)
		copy(info[:tableNameLen-1], table)
		if err := getsockopt(fd, level, soGetInfo, info); err != nil {
			return nil, os.NewSyscallError("getsockopt IPT_SO_GET_INFO", err)
		}
		size := binary.NativeEndian.Uint32(info[infoEntrySize:])
		if size > maxOutput {
			return nil, fmt.Errorf("more than %d bytes: too many rules", maxOutput)
		}
		answer := make([]byte, entriesHead+size)
		copy(answer, info[:tableNameLen])
		binary.NativeEndian.PutUint32(answer[tableNameLen:], size)
		err = getsockopt(fd, level, soGetEntries, answer)
		if err == nil {
			return answer[entriesHead:], nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return nil, os.NewSyscallError("getsockopt IPT_SO_GET_ENTRIES", err)
}

// getsockopt is the system call, for questions that come in the buffer that the
// answer goes to.
func getsockopt(fd, level, name int, buf []byte) error {
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// chainHeads finds the names of the chains in a table's entries. A chain that
// is not built in begins with an entry whose target is an error of its name, as
// does the end of the table.
func chainHeads(f Family, entries []byte) (names []string) {
	next, head := entryV4Next, entryV4Size
	if f == IPv6 {
		next, head = entryV6Next, entryV6Size
	}
	for len(entries) >= head {
		size, target := int(binary.NativeEndian.Uint16(entries[next:])), int(binary.NativeEndian.Uint16(entries[next-2:]))
		if size < head || size > len(entries) {
			return names
		}
		if t := entries[min(target, size):size]; len(t) > targetHead {
			name := unix.ByteSliceToString(t[targetHead:])
			if unix.ByteSliceToString(t[targetName:targetName+targetNameLen]) == chainHeadTarget && name != chainHeadTarget {
				names = append(names, name)
			}
		}
		entries = entries[size:]
	}
	return names
}

// legacyInUse says whether a namespace has tables of the legacy variant. Its
// programs are not to be asked: they load the kernel modules to look.
func legacyInUse(within func(func() error) error) (used bool, err error) {
	err = within(func() error {
		for _, path := range []string{legacyTables, legacyTables6} {
			names, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			used = used || len(names) > 0
		}
		return nil
	})
	return used, err
}
