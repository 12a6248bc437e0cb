package ends

import (
	"encoding/binary"
	"fmt"
)

// Op is what a connection is for.
type Op byte

// The operations, as the head says them.
const (
	Up   Op = 'U' // the server takes what comes and counts it in the slot
	Down Op = 'D' // the server sends all it can
	Echo Op = 'E' // the server answers each message of size bytes with its like
)

// MaxMessage is the largest message that is echoed.
const MaxMessage = 64 << 10

const (
	headLen = 9
	block   = 128 << 10 // of one read or write in bulk
)

// head is the first thing on a connection.
type head struct {
	op         Op
	slot, size uint32
}

func (h head) bytes() (b [headLen]byte) {
	b[0] = byte(h.op)
	binary.BigEndian.PutUint32(b[1:], h.slot)
	binary.BigEndian.PutUint32(b[5:], h.size)
	return b
}

func parseHead(b []byte) (head, error) {
	h := head{op: Op(b[0]), slot: binary.BigEndian.Uint32(b[1:]), size: binary.BigEndian.Uint32(b[5:])}
	switch h.op {
	case Up, Down:
		return h, nil
	case Echo:
		if h.size < 1 || h.size > MaxMessage {
			return h, fmt.Errorf("an echo of %d bytes", h.size)
		}
		return h, nil
	}
	return h, fmt.Errorf("unknown operation %q", b[0])
}
