package nswatch

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"testing"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

func listen(t testing.TB, ns *netns.NS, network, address string) net.Listener {
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) { l, err = net.Listen(network, address); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestListening(t *testing.T) {
	nstest.LeakCheck(t)
	a, _ := nstest.NewNS(t, "a")
	b, _ := nstest.NewNS(t, "b")
	inside(t, a, "ip", "link", "set", "lo", "up")
	w, _ := start(t)
	if err := w.Watch("a", a); err != nil {
		t.Fatal(err)
	}
	ports := func() string {
		t.Helper()
		p, err := w.Listening("a")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(slices.Sorted(maps.Keys(p)))
	}
	if got := ports(); got != "[]" {
		t.Errorf("in an empty namespace: %s", got)
	}
	four := listen(t, a, "tcp4", "0.0.0.0:15001")
	listen(t, a, "tcp", "[::]:15006")
	listen(t, b, "tcp4", "0.0.0.0:15008")
	c, err := net.Dial("tcp", "127.0.0.1:1") // not inside
	if err == nil {
		c.Close()
	}
	if got := ports(); got != "[15001 15006]" {
		t.Errorf("%s", got)
	}
	four.Close()
	if got := ports(); got != "[15006]" {
		t.Errorf("after Close: %s", got)
	}
	for i := range 300 { // more than one datagram
		listen(t, a, "tcp4", fmt.Sprintf("127.0.0.1:%d", 20000+i))
	}
	if p, err := w.Listening("a"); err != nil || len(p) != 301 {
		t.Errorf("%d ports, %v", len(p), err)
	}
	if _, err := w.Listening("b"); err == nil {
		t.Error("an answer about what is not watched")
	}
}

func TestReadIsBounded(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 15), make([]byte, 16), append([]byte{8, 0, 0, 0}, make([]byte, 20)...), append([]byte{200, 0, 0, 0}, make([]byte, 20)...)} {
		if done, err := read(b, 0, map[uint16]bool{}); done || len(b) >= 16 && err == nil {
			t.Errorf("%d bytes: %t, %v", len(b), done, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, uint32(1))
	f.Add(append([]byte{88, 0, 0, 0, 20, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 10, 0, 0, 0x3a, 0x99}, make([]byte, 66)...), uint32(1))
	f.Fuzz(func(_ *testing.T, b []byte, seq uint32) { _, _ = read(b, seq, map[uint16]bool{}) })
}

// BenchmarkListening is what an audit of a pod costs.
func BenchmarkListening(b *testing.B) {
	ns, _ := nstest.NewNS(b, "a")
	for _, p := range []string{"15001", "15006", "15008"} {
		listen(b, ns, "tcp4", "0.0.0.0:"+p)
	}
	w, err := New()
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	if err := w.Watch("a", ns); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if p, err := w.Listening("a"); err != nil || len(p) != 3 {
			b.Fatal(p, err)
		}
	}
}
