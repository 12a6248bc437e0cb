package hbone_test

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// cpu is the processor time this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkBulk moves 1 MiB an operation from client to server, over all
// connections together. CPU is that of both proxies and both applications.
func BenchmarkBulk(b *testing.B) {
	sink := func(c *net.TCPConn) {
		_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
	}
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("direct/%d", n), func(b *testing.B) {
			addr := serveApp(b, sink)
			bulk(b, n, func() *net.TCPConn { return dial(b, addr) })
		})
		b.Run(fmt.Sprintf("hbone/%d", n), func(b *testing.B) {
			r := newRig(b, serveApp(b, sink), nil)
			bulk(b, n, r.dial)
		})
	}
}

func bulk(b *testing.B, n int, open func() *net.TCPConn) {
	conns := make([]*net.TCPConn, n)
	for i := range conns {
		conns[i] = open()
	}
	buf := make([]byte, 256<<10)
	share := make([]int, n) // writes of each connection
	work := make(chan struct{}, b.N*4)
	for range b.N * 4 {
		work <- struct{}{}
	}
	close(work)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	b.ResetTimer()
	start := cpu()
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			for range work {
				if _, err := c.Write(buf); err != nil {
					b.Error(err)
					return
				}
				share[i]++
			}
			_ = c.CloseWrite()
			_, _ = c.Read(buf[:1]) // the sink closes when it has everything
		})
	}
	wg.Wait()
	b.ReportMetric((cpu()-start).Seconds()*1024/float64(b.N), "cpu-s/GiB")
	b.ReportMetric(float64(slices.Min(share))/float64(slices.Max(share)), "min/max")
}

// BenchmarkRequest is one byte there and one byte back, with as many in flight
// as there are connections.
func BenchmarkRequest(b *testing.B) {
	for _, n := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("direct/%d", n), func(b *testing.B) {
			addr := serveApp(b, echo)
			requests(b, n, func() *net.TCPConn { return dial(b, addr) })
		})
		b.Run(fmt.Sprintf("hbone/%d", n), func(b *testing.B) {
			r := newRig(b, serveApp(b, echo), nil)
			requests(b, n, r.dial)
		})
	}
}

func requests(b *testing.B, n int, open func() *net.TCPConn) {
	conns := make([]*net.TCPConn, n)
	for i := range conns {
		conns[i] = open()
	}
	work := make(chan struct{}, b.N)
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	b.ReportAllocs()
	b.ResetTimer()
	start := cpu()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			buf := []byte{1}
			for range work {
				if _, err := c.Write(buf); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64((cpu()-start).Microseconds())/float64(b.N), "cpu-µs/op")
}

// BenchmarkConnect is a new connection through a warm tunnel, with one byte
// there and back.
func BenchmarkConnect(b *testing.B) {
	r := newRig(b, serveApp(b, echo), nil)
	b.ReportAllocs()
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c, err := net.Dial("tcp", r.front.Addr().String())
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = c.Write([]byte{1})
			_, err = io.ReadFull(c, make([]byte, 1))
			_ = c.(*net.TCPConn).SetLinger(0) // no TIME_WAIT: ports are few
			c.Close()
			if err != nil {
				b.Error(err)
				return
			}
			<-r.clientDone
			<-r.serverDone
		}
	})
}

// BenchmarkIdle reports what an idle connection holds, in the client's and the
// server's proxy together, sockets aside.
func BenchmarkIdle(b *testing.B) {
	const n = 2000
	hold := make(chan struct{})
	r := newRig(b, serveApp(b, func(c *net.TCPConn) {
		_, _ = c.Write([]byte{1})
		<-hold
	}), nil)
	defer close(hold)
	memory := func() (bytes int, goroutines int) {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc + m.StackInuse), runtime.NumGoroutine()
	}
	for b.Loop() {
		conns := make([]*net.TCPConn, n)
		before, g := memory()
		for i := range conns {
			conns[i] = r.dial()
			if _, err := io.ReadFull(conns[i], make([]byte, 1)); err != nil {
				b.Fatal(err)
			}
		}
		after, g2 := memory()
		// The test's own backend has a goroutine for each as well.
		b.ReportMetric(float64(after-before)/n, "B/conn")
		b.ReportMetric(float64(g2-g)/n, "goroutines/conn")
		for _, c := range conns {
			c.Close()
		}
	}
}
