package relay

import "sync"

// chunkSize is the size of every buffer here: one read of a socket that was
// idle, one piece of what an application does not take yet. None is held while
// there is nothing in it.
const chunkSize = 16 << 10

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// chunk is a pooled buffer with bytes in [off, end).
type chunk struct {
	mem      *[chunkSize]byte
	off, end int
}

func getChunk() chunk { return chunk{mem: chunks.Get().(*[chunkSize]byte)} }

// free gives the buffer back; nothing may refer to its bytes any more.
func (c *chunk) free() {
	if c.mem != nil {
		chunks.Put(c.mem)
	}
	*c = chunk{}
}

func (c *chunk) bytes() []byte { return c.mem[c.off:c.end] }
func (c *chunk) empty() bool   { return c.off == c.end }

// queue is bytes that wait, in order.
type queue struct{ chunks []chunk }

func (q *queue) empty() bool { return q == nil || len(q.chunks) == 0 }

// add copies p to the end.
func (q *queue) add(p []byte) {
	for len(p) > 0 {
		if n := len(q.chunks); n == 0 || q.chunks[n-1].end == chunkSize {
			q.chunks = append(q.chunks, getChunk())
		}
		c := &q.chunks[len(q.chunks)-1]
		n := copy(c.mem[c.end:], p)
		c.end += n
		p = p[n:]
	}
}

// first appends to bufs the pieces at the head, as many as one write takes.
// They stay valid until drop, also while more is added.
func (q *queue) first(bufs [][]byte) [][]byte {
	for i := range q.chunks[:min(len(q.chunks), maxVec)] {
		bufs = append(bufs, q.chunks[i].bytes())
	}
	return bufs
}

// drop removes n bytes from the head.
func (q *queue) drop(n int) {
	for n > 0 {
		c := &q.chunks[0]
		k := min(n, c.end-c.off)
		c.off += k
		n -= k
		if c.empty() {
			c.free()
			q.chunks = q.chunks[1:]
		}
	}
	if len(q.chunks) == 0 {
		q.chunks = nil
	}
}
