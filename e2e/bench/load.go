package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// dialer opens one connection of a subject to the traffic's server.
type dialer func(ctx context.Context) (net.Conn, error)

// figures of one measurement; those that do not apply are zero.
type figures struct {
	rate     float64       // bytes, requests or connections a second
	cpu      float64       // CPU seconds of the proxies, a GB, a request or a connection
	p50, p99 time.Duration // of one request or connection
	fairness float64       // least over most bytes of a connection
}

// bulk sends through conns connections for a while.
func bulk(ctx context.Context, dial dialer, cpu func() (float64, error), conns int, length time.Duration) (figures, error) {
	ctx, cancel := context.WithTimeout(ctx, length+30*time.Second)
	defer cancel()
	open, err := openAll(ctx, dial, conns, []byte{opSink})
	if err != nil {
		return figures{}, err
	}
	defer closeAll(open)
	used, err := cpu()
	if err != nil {
		return figures{}, err
	}
	began := time.Now()
	sent := make([]int64, conns)
	errs := make([]error, conns)
	var wg sync.WaitGroup
	for i, c := range open {
		wg.Go(func() { sent[i], errs[i] = pour(c, began.Add(length)) })
	}
	wg.Wait()
	took := time.Since(began)
	if err := errors.Join(errs...); err != nil {
		return figures{}, err
	}
	now, err := cpu()
	if err != nil {
		return figures{}, err
	}
	var total int64
	for _, n := range sent {
		total += n
	}
	gb := float64(total) / 1e9
	return figures{
		rate: float64(total) / took.Seconds(), cpu: (now - used) / gb,
		fairness: float64(slices.Min(sent)) / float64(max(1, slices.Max(sent))),
	}, nil
}

type closeWriter interface{ CloseWrite() error }

// pour writes until the time has come, ends its direction and holds the
// server's count against its own.
func pour(c net.Conn, until time.Time) (int64, error) {
	c.SetDeadline(until.Add(20 * time.Second))
	buf := make([]byte, bulkBuffer)
	var sent int64
	for time.Now().Before(until) {
		n, err := c.Write(buf)
		sent += int64(n)
		if err != nil {
			return sent, err
		}
	}
	if err := c.(closeWriter).CloseWrite(); err != nil {
		return sent, err
	}
	var count [8]byte
	if _, err := io.ReadFull(c, count[:]); err != nil {
		return sent, fmt.Errorf("the server's count: %w", err)
	}
	if got := int64(binary.BigEndian.Uint64(count[:])); got != sent {
		return sent, fmt.Errorf("the server received %d of %d bytes", got, sent)
	}
	return sent, nil
}

// requests plays ping-pong on inFlight connections for a while.
func requests(ctx context.Context, dial dialer, cpu func() (float64, error), inFlight, size int, length time.Duration) (figures, error) {
	ctx, cancel := context.WithTimeout(ctx, length+30*time.Second)
	defer cancel()
	open, err := openAll(ctx, dial, inFlight, binary.BigEndian.AppendUint32([]byte{opEcho}, uint32(size)))
	if err != nil {
		return figures{}, err
	}
	defer closeAll(open)
	used, err := cpu()
	if err != nil {
		return figures{}, err
	}
	began := time.Now()
	times := make([][]time.Duration, inFlight)
	errs := make([]error, inFlight)
	var wg sync.WaitGroup
	for i, c := range open {
		wg.Go(func() { times[i], errs[i] = pingPong(c, size, began.Add(length)) })
	}
	wg.Wait()
	took := time.Since(began)
	if err := errors.Join(errs...); err != nil {
		return figures{}, err
	}
	now, err := cpu()
	if err != nil {
		return figures{}, err
	}
	all := slices.Concat(times...)
	return summary(all, took, now-used), nil
}

func summary(all []time.Duration, took time.Duration, cpu float64) figures {
	if len(all) == 0 {
		return figures{}
	}
	slices.Sort(all)
	return figures{
		rate: float64(len(all)) / took.Seconds(), cpu: cpu / float64(len(all)),
		p50: all[len(all)/2], p99: all[len(all)*99/100],
	}
}

func pingPong(c net.Conn, size int, until time.Time) ([]time.Duration, error) {
	c.SetDeadline(until.Add(20 * time.Second))
	buf := make([]byte, size)
	var times []time.Duration
	for began := time.Now(); began.Before(until); {
		if _, err := c.Write(buf); err != nil {
			return times, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return times, err
		}
		now := time.Now()
		times = append(times, now.Sub(began))
		began = now
	}
	return times, nil
}

// connections opens connections one after the other from several workers;
// each carries one byte there and back.
func connections(ctx context.Context, dial dialer, cpu func() (float64, error), workers int, length time.Duration) (figures, error) {
	ctx, cancel := context.WithTimeout(ctx, length+30*time.Second)
	defer cancel()
	used, err := cpu()
	if err != nil {
		return figures{}, err
	}
	began := time.Now()
	times := make([][]time.Duration, workers)
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for at := time.Now(); at.Before(began.Add(length)); at = time.Now() {
				if errs[i] = once(ctx, dial); errs[i] != nil {
					return
				}
				times[i] = append(times[i], time.Since(at))
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	if err := errors.Join(errs...); err != nil {
		return figures{}, err
	}
	now, err := cpu()
	return summary(slices.Concat(times...), took, now-used), err
}

func once(ctx context.Context, dial dialer) error {
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte{opEcho, 0, 0, 0, 1, 'x'}); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

// openIdle opens n connections that have carried one byte each way.
func openIdle(ctx context.Context, dial dialer, n int) ([]net.Conn, error) {
	open, err := openAll(ctx, dial, n, []byte{opEcho, 0, 0, 0, 1, 'x'})
	if err != nil {
		return nil, err
	}
	for _, c := range open {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			closeAll(open)
			return nil, err
		}
	}
	return open, nil
}

// openAll opens n connections, a few at a time, and sends each the head.
func openAll(ctx context.Context, dial dialer, n int, head []byte) ([]net.Conn, error) {
	open := make([]net.Conn, n)
	errs := make([]error, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, 32) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if open[i], errs[i] = dial(ctx); errs[i] == nil {
					_, errs[i] = open[i].Write(head)
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		closeAll(open)
		return nil, err
	}
	return open, nil
}

func closeAll(open []net.Conn) {
	for _, c := range open {
		if c != nil {
			c.Close()
		}
	}
}
