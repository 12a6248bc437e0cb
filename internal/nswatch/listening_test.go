package nswatch

import (
	"fmt"
	"net"
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

func TestNotListening(t *testing.T) {
	nstest.LeakCheck(t)
	a, _ := nstest.NewNS(t, "a")
	b, _ := nstest.NewNS(t, "b")
	inside(t, a, "ip", "link", "set", "lo", "up")
	w, _ := start(t)
	if err := w.Watch("a", a); err != nil {
		t.Fatal(err)
	}
	missing := func() string {
		t.Helper()
		p, err := w.NotListening("a", 15001, 15006, 15008)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(p)
	}
	if got := missing(); got != "[15001 15006 15008]" {
		t.Errorf("in an empty namespace: %s", got)
	}
	four := listen(t, a, "tcp4", "0.0.0.0:15001")
	listen(t, a, "tcp", "[::]:15006")
	listen(t, a, "tcp6", "[::]:15009") // IPv6 only
	listen(t, b, "tcp4", "0.0.0.0:15008")
	var c net.Conn // a connection of that port is no listener
	if err := a.Do(func() (err error) { c, err = net.Dial("tcp4", "127.0.0.1:15001"); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := missing(); got != "[15008]" {
		t.Errorf("%s", got)
	}
	if p, err := w.NotListening("a", 15009); err != nil || len(p) != 1 {
		t.Errorf("an IPv6 socket takes IPv4: %v, %v", p, err)
	}
	four.Close()
	if got := missing(); got != "[15001 15008]" {
		t.Errorf("after Close: %s", got)
	}
	if _, err := w.NotListening("b", 1); err == nil {
		t.Error("an answer about what is not watched")
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff}, uint32(1))
	f.Add(append([]byte{88, 0, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 10, 0, 0, 0x3a, 0x99}, make([]byte, 66)...), uint32(1))
	f.Fuzz(func(t *testing.T, b []byte, seq uint32) {
		if there, mine, err := answer(b, seq, 15001); there && (!mine || err != nil) {
			t.Errorf("there %t, mine %t, %v", there, mine, err)
		}
	})
}

// BenchmarkNotListening is what an audit of a pod's listeners costs.
func BenchmarkNotListening(b *testing.B) {
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
		if p, err := w.NotListening("a", 15001, 15006, 15008); err != nil || len(p) > 0 {
			b.Fatal(p, err)
		}
	}
}
