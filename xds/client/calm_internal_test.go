package client

import (
	"net"
	"testing"
)

// gathered is a connection with so much to read at a time.
type gathered struct {
	net.Conn
	n []int
}

func (g *gathered) Read(p []byte) (int, error) {
	n := min(g.n[0], len(p))
	if g.n[0] -= n; g.n[0] == 0 {
		g.n = g.n[1:]
	}
	return n, nil
}

// TestWhatWaits: changes are left to gather, a large message is not.
func TestWhatWaits(t *testing.T) {
	for name, tt := range map[string]struct {
		n     []int
		waits bool
	}{
		"a change":                {[]int{300}, true},
		"many small ones":         {[]int{300, 300, 300}, true},
		"a large message":         {[]int{20 << 10}, false},
		"of several buffers":      {[]int{100 << 10}, false},
		"a change behind a large": {[]int{20 << 10, 300}, true},
		"a large behind a change": {[]int{300, 20 << 10}, false},
		"as much as a buffer has": {[]int{8 << 10, 1}, true},
	} {
		g := &gathered{n: tt.n}
		c := &calmConn{Conn: g, calm: func() bool { return true }}
		for len(g.n) > 0 {
			if _, err := c.Read(make([]byte, 8<<10)); err != nil {
				t.Fatal(err)
			}
		}
		if waits := !c.next.IsZero(); waits != tt.waits {
			t.Errorf("%s: waits: %v", name, waits)
		}
	}
}
