package proxy_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-mesh/warren/internal/nstest"
)

// Certificates of ten seconds under five hundred new connections a second: nobody notices that they change.
// WARREN_SOAK makes it longer, such as 10m.
func TestTenSecondCertificatesUnderLoad(t *testing.T) {
	length, rate, least := 12*time.Second, 100, 0.5
	if v := os.Getenv("WARREN_SOAK"); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
		rate, least = 500, 0.95
	}
	warmThreads() // those that callers hold in a namespace stay: only more of them are a leak
	m := newMesh(t, 2)
	m.ca.TTL = 10 * time.Second
	client, server := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server")
	for i := range destinations {
		server.echo(8080 + i)
	}
	client.mustCall(server.addr(8080))

	var made, failed, excused atomic.Int64
	serials := map[string]bool{}
	frozen := watchForFreezes(t.Context())
	work := make(chan struct{}, 2*rate)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range work {
				to := server.addr(8080 + int(made.Add(1)%destinations))
				began := time.Now()
				if _, answer, err := client.call(to, "x"); err != nil || answer != "x" {
					if frozen.since(began) {
						excused.Add(1) // its deadline ran while this process did not
					} else if failed.Add(1) <= 10 {
						t.Errorf("after %d: answer %q, %v", made.Load(), answer, err)
					}
				}
			}
		})
	}
	start := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	sent := 0
	begin, told := start, start
	for last := start; time.Since(start) < length && time.Since(begin) < 2*length; {
		<-tick.C
		now := time.Now()
		if now.Sub(told) > time.Minute { // what is known if somebody ends it
			told = now
			fmt.Fprintf(os.Stderr, "%s: %d made, %d failed, %d certificates, %d threads, stopped for %s (%d excused)\n", now.Sub(begin).Round(time.Second), made.Load(), failed.Load(), len(serials), nstest.Threads(), frozen.sum(), excused.Load())
		}
		if now.Sub(last) > time.Second {
			start = start.Add(now.Sub(last)) // frozen: connections of that time are not owed
		}
		last = now
		for due := int(now.Sub(start).Seconds() * float64(rate)); sent < due; sent++ {
			work <- struct{}{}
		}
		for _, n := range m.nodes {
			for _, st := range n.srv.Certs().Dump() {
				if st.Identity != nil {
					serials[st.Identity.Chain()[0].SerialNumber.String()] = true
				}
			}
		}
	}
	close(work)
	wg.Wait()
	took := time.Since(begin)
	t.Logf("%d connections in %s (%.0f a second), %d failed, %d certificates; the process was stopped for %s (%d excused)",
		made.Load(), took.Round(time.Second), float64(made.Load())/took.Seconds(), failed.Load(), len(serials), frozen.sum(), excused.Load())
	if want := int64(least * length.Seconds() * float64(rate)); made.Load() < want {
		t.Errorf("%d connections, want at least %d", made.Load(), want)
	}
	if want := int(length / (6 * time.Second) * 2); len(serials) < want {
		t.Errorf("only %d certificates, want at least %d", len(serials), want)
	}
}

const (
	callers = 64 // how many connections are made at once
	// destinations is among how many ports of the server they are spread: each leaves its port in TIME_WAIT for a
	// minute, and a kernel that has to look for a free one among 28,000 gives a few hundred a second and no more.
	destinations = 16
)

// warmThreads has the runtime make a thread for each caller.
func warmThreads() {
	var there, done sync.WaitGroup
	leave := make(chan struct{})
	there.Add(callers)
	for range callers {
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			there.Done()
			<-leave
		})
	}
	there.Wait()
	close(leave)
	done.Wait()
}

// freezes are the times when this process did not run: somebody stopped it, or the machine stood still.
type freezes struct {
	mu    sync.Mutex
	ends  []time.Time
	total time.Duration
	last  time.Time // when whoever watches looked last
}

const freeze = 3 * time.Second // no shorter one makes a call fail

func watchForFreezes(ctx context.Context) *freezes {
	f := &freezes{}
	go func() {
		for last := time.Now(); ctx.Err() == nil; {
			time.Sleep(50 * time.Millisecond)
			now := time.Now()
			f.mu.Lock()
			if gap := now.Sub(last); gap > freeze {
				f.ends, f.total = append(f.ends, now), f.total+gap
			}
			f.last = now
			f.mu.Unlock()
			last = now
		}
	}()
	return f
}

// since says whether the process was stopped after t.
func (f *freezes) since(t time.Time) bool {
	for asked := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		f.mu.Lock()
		last, yes := f.last, len(f.ends) > 0 && f.ends[len(f.ends)-1].After(t)
		f.mu.Unlock()
		if yes || last.After(asked) { // whoever watches may wake later than who was stopped
			return yes
		}
	}
}

func (f *freezes) sum() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total.Round(time.Second)
}
