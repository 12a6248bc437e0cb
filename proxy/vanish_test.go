package proxy_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/xds/workload"
)

// held is what this process has, both proxies and the test's own ends.
type held struct {
	fds, goroutines int
	heap            uint64
}

func holding(t *testing.T) held {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	debug.FreeOSMemory() // twice: what pools keep goes with the second collection
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return held{len(all), runtime.NumGoroutine(), m.HeapAlloc}
}

// A pod's namespace goes in the middle of traffic: the wire first, with everything on
// it, and then the agent says so. Its own proxy lets go at once; the other one when
// nobody answers any more. Others are served meanwhile, and nothing stays.
func TestVanishedNamespace(t *testing.T) {
	m := newMesh(t, 2, func(c *proxy.Config) {
		c.HBONE.PingInterval, c.HBONE.PingTimeout = time.Second, 3*time.Second
		c.Log.Filter = "warn" // the test keeps the lines
	})
	far, near := m.nodes[0].meshPod("far"), m.nodes[1].meshPod("near")
	peers := []*pod{far, near}
	var victims []*pod
	for i := range 2 {
		victims = append(victims, m.nodes[1].pod(fmt.Sprintf("victim%d", i)))
	}
	apps := map[*pod]*pourer{}
	for _, p := range append(victims, peers...) {
		apps[p] = &pourer{}
		p.listen(8080, apps[p].pour)
		p.echo(8081)
	}
	sockets := func() (n int) { // connections, and tunnels that came in
		for _, node := range m.nodes {
			n += node.srv.Sockets()
		}
		return n
	}
	live := func() int { return m.nodes[0].srv.Tracked().Len() + m.nodes[1].srv.Tracked().Len() }
	between := func() {
		far.mustCall(near.addr(8081))
		near.mustCall(far.addr(8081))
		until(t, "their connections are over", func() bool { return live() == 0 })
	}
	between()
	tunnels, before := sockets(), holding(t)
	for i, victim := range victims {
		vanish(t, victim, peers)
		apps[victim].die()
		between()
		until(t, "the proxies have given back what the pod had", func() bool { return sockets() <= tunnels })
		if i == 0 { // what the first one makes, and the others use as well, may stay
			before.heap = holding(t).heap
		}
	}
	const slack = 256 << 10 // less than a buffer for each of the connections
	var now held
	until(t, "nothing is held that was not before", func() bool {
		now = holding(t)
		return now.fds <= before.fds && now.goroutines <= before.goroutines && now.heap <= before.heap+slack
	})
	t.Logf("%+v, before %+v", now, before)
}

// vanish serves the victim, has it exchange bulk with each peer, both as client and as
// server, and takes its namespace away.
func vanish(t *testing.T, victim *pod, peers []*pod) {
	t.Helper()
	m := victim.node.mesh
	victim.w.Protocol = workload.HBONE
	victim.redirect()
	victim.serve(victim.node)
	m.apply(workload.Batch{Workloads: []*workload.Workload{victim.w}})
	var conns []*net.TCPConn
	for _, p := range peers {
		for _, pair := range [][2]*pod{{p, victim}, {victim, p}} {
			for range 4 {
				c, err := pair[0].dial(pair[1].addr(8080))
				if err != nil {
					t.Fatal(err)
				}
				conns = append(conns, c)
			}
		}
	}
	var moved [16]atomic.Int64
	ended := make(chan struct{}, 2*len(conns))
	for i, c := range conns {
		go func() {
			buf := make([]byte, 64<<10)
			for {
				n, err := c.Read(buf)
				if moved[i].Add(int64(n)); err != nil {
					ended <- struct{}{}
					return
				}
			}
		}()
		go func() {
			_, _ = io.Copy(c, zeros{})
			ended <- struct{}{}
		}()
	}
	until(t, "bulk is under way everywhere", func() bool {
		for i := range conns {
			if moved[i].Load() < 256<<10 {
				return false
			}
		}
		return true
	})
	if err := victim.NS.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	}); err != nil {
		t.Fatal(err)
	}
	if err := victim.node.srv.Handler().Del(t.Context(), victim.uid); err != nil {
		t.Error(err)
	}
	m.apply(workload.Batch{RemovedAddresses: []string{victim.w.UID}})
	for i, c := range conns {
		if i/4%2 == 1 { // the victim's own, whose process is gone as well
			c.Close()
		}
	}
	for range 2 * len(conns) { // nobody is left waiting, on either side
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatal("a connection to a namespace that is gone lives on")
		}
	}
	for _, c := range conns {
		c.Close()
	}
}

// zeros is without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// pourer is an application that sends without end and takes as much.
type pourer struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (a *pourer) pour(c *net.TCPConn) {
	a.mu.Lock()
	a.conns = append(a.conns, c)
	a.mu.Unlock()
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}()
	_, _ = io.Copy(c, zeros{})
	c.Close()
	<-over
}

// die ends its connections, as the end of its process does.
func (a *pourer) die() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.conns {
		c.Close()
	}
	a.conns = nil
}
