package hbone

import (
	"sync"

	"github.com/warren-mesh/warren/proxy/hbone/record"
)

// Two sizes of buffer: one record's worth for a tunnel that carries little, and
// one that makes system calls rare for bulk. Both leave room for the overhead
// of records, so that what is read from a socket fits in when it is opened and
// what is built fits in when it is sealed.
const (
	smallPlain = record.MaxPlain
	bulkPlain  = 256 << 10
)

var (
	smallBuffers = sync.Pool{New: func() any { return newBuffer(smallPlain) }}
	bulkBuffers  = sync.Pool{New: func() any { return newBuffer(bulkPlain) }}
)

// buffer is a pooled slice; length 0, capacity as made.
type buffer struct{ b []byte }

func newBuffer(plain int) *buffer {
	// One record more: opening needs room for a whole record at the end.
	return &buffer{make([]byte, 0, record.SealedSize(plain)+record.Room)}
}

// getBuffer returns a buffer for plain bytes of plaintext, at most bulkPlain.
func getBuffer(plain int) *buffer {
	if plain <= smallPlain {
		return smallBuffers.Get().(*buffer)
	}
	return bulkBuffers.Get().(*buffer)
}

func putBuffer(b *buffer) {
	b.b = b.b[:0]
	switch n := cap(b.b); {
	case n > 2*bulkPlain: // grown by a burst of control frames
	case n > bulkPlain:
		bulkBuffers.Put(b)
	default:
		smallBuffers.Put(b)
	}
}
