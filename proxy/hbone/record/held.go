package record

import "sync"

// held keeps bytes until they are a whole record. Its memory is taken from a
// pool while there is something to keep: an idle connection holds none.
type held struct {
	b   []byte  // a part of buf
	buf *[]byte // nil: nothing is held
}

var records = sync.Pool{New: func() any {
	b := make([]byte, 0, headerSize+maxSealed)
	return &b
}}

// next takes one whole record off what is held and src. Nil: there is none yet,
// and src is held. The record is good until release or the next call.
func (h *held) next(src []byte) (record, rest []byte, err error) {
	if len(h.b) == 0 && len(src) >= headerSize {
		size, err := recordSize(src)
		if err != nil {
			return nil, nil, err
		}
		if size <= len(src) {
			return src[:size], src[size:], nil
		}
	}
	src = h.fill(src, headerSize)
	if len(h.b) < headerSize {
		return nil, nil, nil
	}
	size, err := recordSize(h.b)
	if err != nil {
		return nil, nil, err
	}
	src = h.fill(src, size)
	if len(h.b) < size {
		return nil, nil, nil
	}
	record, h.b = h.b[:size], h.b[size:]
	return record, src, nil
}

// fill moves bytes from src until size are held, and returns the rest.
func (h *held) fill(src []byte, size int) []byte {
	n := min(max(0, size-len(h.b)), len(src))
	if n == 0 {
		return src
	}
	h.hold(src[:n])
	return src[n:]
}

// hold keeps a copy of b.
func (h *held) hold(b []byte) {
	if h.buf == nil {
		h.buf = records.Get().(*[]byte)
		h.b = (*h.buf)[:0]
	} else if len(h.b) == 0 {
		h.b = (*h.buf)[:0]
	}
	h.b = append(h.b, b...)
}

// release gives the memory back when nothing is held.
func (h *held) release() {
	if h.buf != nil && len(h.b) == 0 {
		records.Put(h.buf)
		h.b, h.buf = nil, nil
	}
}
