package proxy_test

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Certificates of ten seconds under five hundred new connections a second: nobody notices that they change.
// WARREN_SOAK makes it longer, such as 10m.
func TestTenSecondCertificatesUnderLoad(t *testing.T) {
	length, rate := 12*time.Second, 100
	if v := os.Getenv("WARREN_SOAK"); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
		rate = 500
	}
	m := newMesh(t, 2)
	m.ca.TTL = 10 * time.Second
	client, server := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server")
	server.echo(8080)
	client.mustCall(server.addr(8080))

	var made, failed atomic.Int64
	serials := map[string]bool{}
	work := make(chan struct{}, 2*rate)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range work {
				made.Add(1)
				if _, answer, err := client.call(server.addr(8080), "x"); err != nil || answer != "x" {
					if failed.Add(1) <= 10 {
						t.Errorf("after %d: answer %q, %v", made.Load(), answer, err)
					}
				}
			}
		})
	}
	start := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var longest time.Duration // that this process was kept from running
	sent := 0
	begin, told := start, start
	for last := start; time.Since(start) < length && time.Since(begin) < 2*length; {
		now := <-tick.C
		if now.Sub(told) > time.Minute { // what is known if somebody ends it
			told = now
			fmt.Fprintf(os.Stderr, "%s: %d made, %d failed, %d certificates, longest standstill %s\n", now.Sub(begin).Round(time.Second), made.Load(), failed.Load(), len(serials), longest.Round(time.Millisecond))
		}
		longest = max(longest, now.Sub(last))
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
	t.Logf("%d connections in %s (%.0f a second), %d failed, %d certificates, longest standstill %s",
		made.Load(), took.Round(time.Second), float64(made.Load())/took.Seconds(), failed.Load(), len(serials), longest.Round(time.Millisecond))
	if want := int(length / (6 * time.Second) * 2); len(serials) < want {
		t.Errorf("only %d certificates, want at least %d", len(serials), want)
	}
}
