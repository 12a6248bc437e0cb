package hbone

import (
	"bytes"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/proxy/hbone/h2"
)

// TestEventsAreNotHoarded: DATA by the byte makes many events at once; their room
// is not kept.
func TestEventsAreNotHoarded(t *testing.T) {
	var u tunnel
	u.keep(make([]h2.Event, keptEvents))
	if cap(u.evs) != keptEvents || len(u.evs) != 0 {
		t.Errorf("a usual number: room for %d", cap(u.evs))
	}
	u.segs = make([][]byte, 1000)
	u.keep(make([]h2.Event, keptEvents+1))
	if cap(u.evs)+cap(u.segs) != 0 {
		t.Errorf("a flood: room for %d, %d", cap(u.evs), cap(u.segs))
	}
}

// TestSmallDataMovesTogether: small pieces become one, large ones stay where they
// are, and no byte of what follows is touched.
func TestSmallDataMovesTogether(t *testing.T) {
	large := strings.Repeat("L", smallData+1)
	const header = "123456789"
	for name, tc := range map[string]struct {
		pieces []string
		want   int // pieces
	}{
		"small ones":             {[]string{"a", "bc", "d"}, 1},
		"a small behind a large": {[]string{large, "a", "b"}, 1},
		"a large between":        {[]string{"a", large, "b", large}, 3},
		"large ones":             {[]string{large, large}, 2},
	} {
		plain := []byte(strings.Join(tc.pieces, header) + header + "next")
		var segs [][]byte
		for at, i := 0, 0; i < len(tc.pieces); i++ {
			b := plain[at : at+len(tc.pieces[i])]
			if at += len(b) + len(header); i == 0 {
				segs = append(segs, b)
			} else {
				segs = join(segs, b)
			}
		}
		if got := string(bytes.Join(segs, nil)); got != strings.Join(tc.pieces, "") || len(segs) != tc.want {
			t.Errorf("%s: %d pieces, %.40q", name, len(segs), got)
		}
		if !bytes.HasSuffix(plain, []byte(header+"next")) {
			t.Errorf("%s: what follows has changed", name)
		}
	}
	if segs := join([][]byte{make([]byte, 1)}, []byte("x")); len(segs) != 2 {
		t.Error("a piece grew out of its buffer")
	}
}
