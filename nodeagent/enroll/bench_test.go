package enroll_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/nswatch"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/zds"
)

// idlePods is as many as a large node has.
const idlePods = 250

// BenchmarkIdleNode says what it costs to prove that many pods in which nothing
// happens: the agent's processor time, that of the programs it runs, and its heap; and
// how long it takes to enrol them all as running pods. One iteration is a second.
func BenchmarkIdleNode(b *testing.B) {
	for _, name := range []string{redirect.NameNFT, redirect.NameNFTables} {
		b.Run(name, func(b *testing.B) { benchIdle(b, name) })
	}
}

func benchIdle(b *testing.B, name string) {
	backend, err := redirect.Named(name)
	if err != nil {
		b.Skip(err)
	}
	w, err := nswatch.New()
	if err != nil {
		b.Fatal(err)
	}
	find := new(finder)
	n := &node{t: b, dir: b.TempDir(), world: newWorld(), flows: new(flows), backend: backend, notices: new(notices)}
	n.config = func(c *enroll.Config) { c.Watch, c.SelfProbe, c.Finder = w, true, find }
	n.start()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.Run(ctx, n.e.Changed) }()
	socks := make(map[string]*sockets)
	boxes := make(map[string]*sandbox)
	f := zds.NewFakeProxy(n.zds())
	stop := n.connect(f)
	var mu sync.Mutex
	for i := range idlePods {
		uid := fmt.Sprintf("uid-%d", i)
		s := n.sandbox("app", fmt.Sprintf("p%d", i), uid, fmt.Sprintf("c%d", i))
		inPod(b, s.netns, "ip", "link", "set", "lo", "up")
		socks[uid], boxes[uid] = new(sockets), s
		find.set(uid, s)
	}
	f.OnAdd(func(_ context.Context, uid string, _ zds.Info) error {
		mu.Lock()
		defer mu.Unlock()
		socks[uid].open(b, boxes[uid])
		return nil
	})
	b.Cleanup(func() {
		n.stop()
		stop()
		cancel()
		<-done
		for _, s := range socks {
			s.close()
		}
		w.Close()
	})
	began := time.Now()
	n.world.podsAtOnce(boxes)
	proven := func() (in int) {
		for _, r := range n.e.Report() {
			if r.Proof == enroll.ProofWhole {
				in++
			}
		}
		return in
	}
	for deadline := time.Now().Add(5 * time.Minute); proven() < idlePods; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%d pods are proven", proven())
		}
	}
	enrolled := time.Since(began)
	before := cpuTime(b)
	start := time.Now()
	for b.Loop() {
		time.Sleep(time.Second)
	}
	used, took := cpuTime(b)-before, time.Since(start)
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	b.ReportMetric(100*used.Seconds()/took.Seconds(), "%cpu")
	b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MiB-heap")
	b.ReportMetric(enrolled.Seconds(), "s-to-proven")
}

// cpuTime is this process's and that of the programs that it ran.
func cpuTime(b *testing.B) (sum time.Duration) {
	b.Helper()
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}
