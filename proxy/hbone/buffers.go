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
	b     []byte
	large bool // it counts as one
}

func newBuffer(plain int) *buffer {
	// One record more: opening needs room for a whole record at the end.
	return &buffer{b: make([]byte, 0, record.SealedSize(plain)+record.Room)}
}

// fewStreams is how many streams a tunnel may have to be worth large buffers: with
// many the round would be long.
const fewStreams = 8

// bulkSize is the size of the buffers for a read or a write of bulk, on a tunnel with
// so many streams.
func bulkSize(streams int) int {
	if streams <= fewStreams && largeUsed.Load() < maxLarge {
		return largePlain
	}
	return bulkPlain
}

// getBuffer returns a buffer for plain bytes of plaintext, at most largePlain.
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
	b.b = b.b[:0]
	if b.large {
		largeUsed.Add(-1)
		b.large = false
	}
	switch n := cap(b.b); {
	case n > 2*largePlain: // grown by a burst of control frames
	case n > largePlain:
		largeBuffers.Put(b)
	case n > 2*bulkPlain: // likewise
	case n > bulkPlain:
		bulkBuffers.Put(b)
	default:
		smallBuffers.Put(b)
	}
}
