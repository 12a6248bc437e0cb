package ends

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Slots is how many connections of one server can be counted at a time.
const Slots = 1 << 16

// Board is memory of counters that the two ends share, one a connection.
type Board struct {
	mem    []byte
	counts *[Slots]atomic.Uint64
}

// CreateBoard makes a board in a new file.
func CreateBoard(path string) (*Board, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(Slots * 8); err != nil {
		return nil, err
	}
	return mapBoard(f)
}

// OpenBoard maps one that is there.
func OpenBoard(path string) (*Board, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mapBoard(f)
}

func mapBoard(f *os.File) (*Board, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, Slots*8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return &Board{mem: mem, counts: (*[Slots]atomic.Uint64)(unsafe.Pointer(&mem[0]))}, nil
}

// Slot is the counter of one connection.
func (b *Board) Slot(i uint32) *atomic.Uint64 { return &b.counts[i%Slots] }

// Sum adds up n counters from the i-th on.
func (b *Board) Sum(i uint32, n int) (sum uint64) {
	for k := range uint32(n) {
		sum += b.Slot(i + k).Load()
	}
	return sum
}

// Close unmaps the board.
func (b *Board) Close() error { return unix.Munmap(b.mem) }
