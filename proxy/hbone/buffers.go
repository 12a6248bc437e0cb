package hbone

import (
	"sync"
	"sync/atomic"

	"github.com/warren-mesh/warren/proxy/hbone/record"
)

// Three sizes of buffer: one record's worth for a tunnel that carries little, and two
// that make system calls rare for bulk. All leave room for the overhead of records,
// so that what is read from a socket fits in when it is opened and what is built fits
// in when it is sealed.
const (
	smallPlain = record.MaxPlain
	bulkPlain  = 256 << 10
	largePlain = 1 << 20
)

// maxLarge is how many large buffers may be in use, by all tunnels together, before
// others use smaller ones: peers that stop reading in the middle of bulk keep theirs.
// Tunnels that choose at the same moment may take a few more.
const maxLarge = 32

var (
	smallBuffers = sync.Pool{New: func() any { return newBuffer(smallPlain) }}
	bulkBuffers  = sync.Pool{New: func() any { return newBuffer(bulkPlain) }}
	largeBuffers = sync.Pool{New: func() any { return newBuffer(largePlain) }}
	largeUsed    atomic.Int32
)

// buffer is a pooled slice; length 0, capacity as made.
type buffer struct {
	b      []byte
	large  bool    // it counts as one
	budget *Budget // which has given taken
	taken  int64
}

func newBuffer(plain int) *buffer {
	// One record more: opening needs room for a whole record at the end.
	return &buffer{b: make([]byte, 0, record.SealedSize(plain)+record.Room)}
}

// fewStreams is how many streams a tunnel may have to be worth large buffers: with
// many the round would be long.
const fewStreams = 8

// getBulk returns a buffer for a read or a write of bulk, on a tunnel with so many
// streams, and for how much plaintext it is: as large as is worth it and budget allows.
// Whoever stops reading keeps a tunnel's writer waiting with its buffer for hours, and
// no number of such peers shall take more memory than there is.
func getBulk(streams int, budget *Budget) (*buffer, int) {
	if streams <= fewStreams && largeUsed.Load() < maxLarge {
		if b := reserve(largePlain, budget); b != nil {
			return b, largePlain
		}
	}
	if b := reserve(bulkPlain, budget); b != nil {
		return b, bulkPlain
	}
	return getBuffer(smallPlain), smallPlain
}

func reserve(plain int, budget *Budget) *buffer {
	if !budget.Take(int64(plain)) {
		return nil
	}
	b := getBuffer(plain)
	b.budget, b.taken = budget, int64(plain)
	return b
}

// getBuffer returns a buffer for plain bytes of plaintext, at most largePlain, for who
// gives it back without waiting for anything.
func getBuffer(plain int) *buffer {
	switch {
	case plain <= smallPlain:
		return smallBuffers.Get().(*buffer)
	case plain <= bulkPlain:
		return bulkBuffers.Get().(*buffer)
	}
	largeUsed.Add(1)
	b := largeBuffers.Get().(*buffer)
	b.large = true
	return b
}

func putBuffer(b *buffer) {
	b.budget.Put(b.taken)
	if b.large {
		largeUsed.Add(-1)
	}
	*b = buffer{b: b.b[:0]}
	switch n := cap(b.b); {
	case n > 2*largePlain: // grown by a burst of control frames
	case n > largePlain:
		largeBuffers.Put(b)
	case n > 2*bulkPlain: // likewise
	case n > bulkPlain:
		bulkBuffers.Put(b)
	case n > 4*smallPlain: // likewise
	default:
		smallBuffers.Put(b)
	}
}
