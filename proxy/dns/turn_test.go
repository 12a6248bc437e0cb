package dns

import (
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/warren-mesh/warren/xds/workload"
)

// crowdedMesh sees how many look at it at a time.
type crowdedMesh struct {
	*fakeMesh
	now, most atomic.Int32
}

func (m *crowdedMesh) Look() (*workload.View, Client, bool) {
	n := m.now.Add(1)
	defer m.now.Add(-1)
	for most := m.most.Load(); n > most && !m.most.CompareAndSwap(most, n); most = m.most.Load() {
	}
	for range 20 { // others that may come, do
		runtime.Gosched()
	}
	return m.fakeMesh.Look()
}

// A pod may have many connections, and ask at once over all of them: they are answered in
// turn, or its answers would keep as many threads as there are from everybody else.
func TestAnswersInTurn(t *testing.T) {
	m := &crowdedMesh{fakeMesh: knownMesh()}
	s := serve(t, func(c *Config) { c.Mesh, c.Limits.Turn = m, time.Hour })
	raw, _ := question4("web.app.svc.cluster.local.", dns.TypeA).Pack()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			c, err := net.Dial("tcp4", s.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			for range 20 {
				if _, err := c.Write(framed(raw)); err != nil {
					t.Error(err)
					return
				}
			}
			for range 20 {
				if _, err := readMessage(c); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if n := m.most.Load(); n != 1 {
		t.Errorf("%d answers were worked out at a time", n)
	}
}

// Who does not read his answer keeps nobody of the pod waiting.
func TestTurnIsLost(t *testing.T) {
	s := serve(t, func(c *Config) { c.Limits.Idle = time.Hour })
	raw, _ := question4("web.app.svc.cluster.local.", dns.TypeA).Pack()
	ask := func() net.Conn {
		ours, theirs := net.Pipe() // a write waits for its reader
		t.Cleanup(func() { _ = ours.Close() })
		s.connect(theirs)
		_ = ours.SetDeadline(time.Now().Add(time.Minute))
		if _, err := ours.Write(framed(raw)); err != nil {
			t.Fatal(err)
		}
		return ours
	}
	silent := ask()
	for range 3 {
		if _, err := readMessage(ask()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := readMessage(silent); err != nil {
		t.Error(err)
	}
}

func TestDraw(t *testing.T) {
	at := func(n ...byte) (out []netip.Addr) {
		for _, b := range n {
			out = append(out, netip.AddrFrom4([4]byte{10, 0, 0, b}))
		}
		return out
	}
	came := map[netip.Addr]bool{}
	for range 1000 {
		for _, tt := range []struct{ n, want int }{{0, 0}, {2, 2}, {3, 3}, {4, 3}, {9, 3}} {
			list := at(1, 2, 1, 1, 3)
			got := draw(list, tt.n)
			slices.SortFunc(got, netip.Addr.Compare)
			if len(got) != tt.want || len(slices.Compact(got)) != tt.want {
				t.Fatalf("of %d: %v", tt.n, got)
			}
		}
		came[draw(at(1, 2, 3), 1)[0]] = true
	}
	if len(came) != 3 {
		t.Errorf("only %v are drawn", came)
	}
}
