package ends

import (
	"math/bits"
	"time"
)

const (
	subBits = 6 // 64 buckets an octave: a quantile is at most 1.6 % off
	octaves = 40
)

// Histogram counts durations in buckets that grow with them. The zero value is
// empty; adding allocates nothing.
type Histogram struct {
	n       uint64
	buckets [octaves << subBits]uint32
}

// Add counts one duration.
func (h *Histogram) Add(d time.Duration) {
	h.n++
	h.buckets[bucket(uint64(max(d, 0)))]++
}

// Merge adds what other has counted.
func (h *Histogram) Merge(other *Histogram) {
	h.n += other.n
	for i, c := range other.buckets {
		h.buckets[i] += c
	}
}

// N is how many durations have been added.
func (h *Histogram) N() uint64 { return h.n }

// Quantile returns the duration that the share q of all is not above; zero
// when nothing has been added.
func (h *Histogram) Quantile(q float64) time.Duration {
	want := uint64(q * float64(h.n))
	var seen uint64
	for i, c := range h.buckets {
		if seen += uint64(c); seen > want || seen == h.n && c > 0 {
			return time.Duration(upper(i))
		}
	}
	return 0
}

func bucket(v uint64) int {
	shift := max(0, bits.Len64(v)-subBits-1)
	return min(shift<<subBits+int(v>>shift), octaves<<subBits-1)
}

// upper is the largest value of bucket i.
func upper(i int) uint64 {
	if i < 2<<subBits {
		return uint64(i)
	}
	shift := i>>subBits - 1
	return (uint64(i-shift<<subBits)+1)<<shift - 1
}
