package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/warren-mesh/warren/e2e/bench/ends"
	"github.com/warren-mesh/warren/e2e/onehost"
)

// way is where traffic goes.
type way string

const (
	across  way = "hbone"     // from node to node, both pods in the mesh
	oneNode way = "same-node" // both pods on the first node, both in the mesh
	outward way = "plain-out" // from the mesh to a pod outside it
	inward  way = "plain-in"  // from a pod outside the mesh into it
)

func (w way) String() string {
	return map[way]string{
		across: "mesh, node to node", oneNode: "mesh, same node", outward: "plaintext out of the mesh", inward: "plaintext into the mesh",
	}[w]
}

type kind int

const (
	proxied kind = iota
	direct       // the same wire, both pods outside the mesh
	overTLS      // direct, TLS between the two ends
)

// subject is what a load is tried on.
type subject struct {
	name string
	kind kind
	bed  *bed
	base string // whose figures its own are held against; empty: nobody's
}

// pods are the ends of a way.
func (s subject) pods(w way) (client, server *onehost.Pod) {
	b := s.bed
	switch {
	case s.kind != proxied && w == oneNode:
		return b.outClient, b.outLocal
	case s.kind != proxied:
		return b.outClient, b.outServer
	case w == oneNode:
		return b.client, b.local
	case w == outward:
		return b.client, b.outServer
	case w == inward:
		return b.outClient, b.server
	}
	return b.client, b.server
}

// cost is CPU time in seconds, and when it was read.
type cost struct {
	at                     time.Time
	proxies, ends, machine float64
}

func (s subject) cost(server *onehost.Pod) (c cost, err error) {
	if c.machine, err = busy(); err != nil {
		return c, err
	}
	pids := []int{os.Getpid(), s.bed.endPIDs[server]}
	for _, pid := range pids {
		used, err := onehost.CPU(pid)
		if err != nil {
			return c, err
		}
		c.ends += used
	}
	if s.kind == proxied {
		c.proxies, err = s.bed.ProxyCPU()
	}
	c.at = time.Now()
	return c, err
}

// figures are what one measurement has given, by column.
type figures map[string]float64

// setOther says how many cores the two ends used, and everything else on the machine.
func (f figures) setOther(a, b cost) {
	took := b.at.Sub(a.at).Seconds()
	f[colOther.Key] = max(0, ((b.machine-a.machine)-(b.proxies-a.proxies)-(b.ends-a.ends))/took)
	f[colEnds.Key] = (b.ends - a.ends) / took
}

// touchTimeout is how long a way may take until it works.
const touchTimeout = 10 * time.Second

// run plays a plan and reads what it cost within its window.
func (s subject) run(ctx context.Context, w way, p ends.Plan) (ends.Result, [2]cost, error) {
	return s.play(ctx, w, s.place(w, p))
}

// place says where a plan's connections go, and where the server counts them.
func (s subject) place(w way, p ends.Plan) ends.Plan {
	_, server := s.pods(w)
	p.Board, p.Slot = s.bed.boards[server], s.bed.slot
	s.bed.slot = (s.bed.slot + uint32(p.Conns)) % ends.Slots
	if p.Dst == nil {
		dst := netip.AddrPortFrom(server.IP4(), plainPort)
		p.Dst = func() netip.AddrPort { return dst }
	}
	return p
}

func (s subject) play(ctx context.Context, w way, p ends.Plan) (r ends.Result, used [2]cost, err error) {
	client, server := s.pods(w)
	var failed error
	marks := 0
	p.Mark = func() {
		var err error
		used[marks%2], err = s.cost(server)
		failed = errors.Join(failed, err)
		marks++
	}
	if s.kind == overTLS {
		r, err = ends.RunTLS(ctx, p, s.bed.dialTLS())
	} else {
		err = client.NS.Do(func() (err error) {
			r, err = ends.Run(ctx, p)
			return err
		})
	}
	return r, used, errors.Join(err, failed)
}

// touch waits until the way works, and leaves it warm.
func (s subject) touch(ctx context.Context, w way) error {
	if s.kind == overTLS {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, touchTimeout)
	defer cancel()
	for {
		r, _, err := s.run(ctx, w, ends.Plan{Op: ends.Echo, Conns: 1, Size: 1, Hold: 1})
		if err == nil {
			r.Held.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not work: %w", w, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lastWords are the ends of lines in the proxies' logs, after a failure: the
// last that tell of an error other than the end of our own connections, or else
// the last.
func (s subject) lastWords() string {
	if s.kind != proxied {
		return ""
	}
	var b strings.Builder
	for _, n := range s.bed.Nodes {
		text, _ := os.ReadFile(n.ProxyLog())
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		last := lines[len(lines)-1]
		for _, l := range lines {
			if strings.Contains(l, `"error":`) && !strings.Contains(l, "reset by peer") {
				last = l
			}
		}
		fmt.Fprintf(&b, "\n      %s: %s", n.Name, last[max(0, len(last)-400):])
	}
	return b.String()
}
