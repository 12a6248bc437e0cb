package app

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"sync"
	"time"
)

// Load asks again and again. An http:// target is asked on a new connection each
// time; a tcp:// target is asked over connections that are kept, and a kept
// connection that breaks counts as one failure and is replaced.
type Load struct {
	Name     string `json:"name"`
	URL      string `json:"url"`
	Workers  int    `json:"workers"`
	Interval string `json:"interval"` // of each worker
	Timeout  string `json:"timeout,omitempty"`
}

// Summary is how a load went so far.
type Summary struct {
	Sent   int            `json:"sent"`
	Failed int            `json:"failed"`
	Live   int            `json:"live"`             // kept connections that are open now
	Errors map[string]int `json:"errors,omitempty"` // by text, addresses left out
	// FirstFailures tells when the first failures were.
	FirstFailures []string `json:"firstFailures,omitempty"`
	P50MS         float64  `json:"p50ms"`
	P99MS         float64  `json:"p99ms"`
	MaxMS         float64  `json:"maxms"`
	// GapMS is the longest time in which no worker succeeded.
	GapMS float64 `json:"gapms"`
}

type load struct {
	Load
	interval, timeout time.Duration
	stop              context.CancelFunc
	wg                sync.WaitGroup

	mu     sync.Mutex
	sum    Summary   // guarded by mu, as all below
	last   time.Time // of a success
	millis []float64
}

func startLoad(l Load) (*load, error) {
	u, err := url.Parse(l.URL)
	if err != nil {
		return nil, err
	}
	StoodStill(time.Now()) // it watches from now on
	run := &load{Load: l, last: time.Now()}
	run.sum.Errors = make(map[string]int)
	if run.interval, err = time.ParseDuration(l.Interval); err != nil {
		return nil, err
	}
	if run.timeout, err = time.ParseDuration(l.Timeout); err != nil {
		run.timeout = 10 * time.Second
	}
	ctx, stop := context.WithCancel(context.Background())
	run.stop = stop
	for i := range l.Workers {
		run.wg.Go(func() {
			pause(ctx, run.interval*time.Duration(i)/time.Duration(l.Workers))
			if u.Scheme == "tcp" {
				run.keep(ctx, u.Host)
			} else {
				run.fetch(ctx)
			}
		})
	}
	return run, nil
}

func (l *load) fetch(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		_, err := Call{URL: l.URL}.within(ctx, l.timeout)
		if ctx.Err() == nil || err == nil {
			l.count(began, err)
		}
		pause(ctx, l.interval-time.Since(began))
	}
}

func (c Call) within(ctx context.Context, d time.Duration) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return c.ask(ctx)
}

// keep holds one connection and replaces it when it breaks.
func (l *load) keep(ctx context.Context, addr string) {
	for ctx.Err() == nil {
		conn, err := l.dial(ctx, addr)
		if err != nil {
			if ctx.Err() == nil {
				l.count(time.Now(), fmt.Errorf("dial: %w", err))
			}
			pause(ctx, l.interval)
			continue
		}
		l.live(1)
		in := bufio.NewReader(conn)
		for ctx.Err() == nil && err == nil {
			began := time.Now()
			_ = conn.SetDeadline(began.Add(l.timeout)) // fails with the connection, as the echo does then
			err = echoOnce(conn, in, fmt.Sprintf("%s at %d\n", l.Name, began.UnixNano()))
			if err == nil || ctx.Err() == nil {
				l.count(began, err)
			}
			pause(ctx, l.interval-time.Since(began))
		}
		conn.Close()
		l.live(-1)
	}
}

func (l *load) dial(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

// pause waits for d or the end.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (l *load) live(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum.Live += n
}

// Addresses and times differ from error to error and are left out of its name.
var variable = regexp.MustCompile(`\d+\.\d+\.\d+\.\d+(:\d+)?|\[[0-9a-f:]+\](:\d+)?|at \d+`)

const (
	keptSamples  = 200_000
	keptFailures = 10
)

func (l *load) count(began time.Time, err error) {
	now := time.Now()
	stood := err != nil && Late(began) > 0
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum.Sent++
	if stood {
		l.sum.Errors["not counted as failed: everything stood still meanwhile"]++
		return
	}
	if err != nil {
		l.sum.Failed++
		name := variable.ReplaceAllString(err.Error(), "…")
		l.sum.Errors[name]++
		if len(l.sum.FirstFailures) < keptFailures {
			l.sum.FirstFailures = append(l.sum.FirstFailures, now.UTC().Format("15:04:05.000")+" "+err.Error())
		}
		return
	}
	l.sum.GapMS = max(l.sum.GapMS, float64(now.Sub(l.last).Milliseconds()))
	l.last = now
	if len(l.millis) < keptSamples {
		l.millis = append(l.millis, float64(now.Sub(began).Microseconds())/1000)
	}
}

// summary is how it went so far.
func (l *load) summary() Summary {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sum
	s.GapMS = max(s.GapMS, float64(time.Since(l.last).Milliseconds()))
	s.Errors = make(map[string]int)
	for k, v := range l.sum.Errors {
		s.Errors[k] = v
	}
	if n := len(l.millis); n > 0 {
		sorted := slices.Sorted(slices.Values(l.millis))
		s.P50MS, s.P99MS, s.MaxMS = sorted[n/2], sorted[n*99/100], sorted[n-1]
	}
	return s
}

// end stops the load and says how it went.
func (l *load) end() Summary {
	s := l.summary() // before the connections go
	l.stop()
	l.wg.Wait()
	return s
}
