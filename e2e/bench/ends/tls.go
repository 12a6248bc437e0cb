package ends

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ServeTLS is the server end over TLS, until ctx ends.
func ServeTLS(ctx context.Context, addr string, config *tls.Config, board *Board) error {
	l, err := tls.Listen("tcp", addr, config)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			defer c.Close()
			_ = answerTLS(c, board) // the client end sees and reports what goes wrong
		})
	}
}

func answerTLS(c net.Conn, board *Board) error {
	var b [headLen]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	h, err := parseHead(b[:])
	if err != nil {
		return err
	}
	buf := make([]byte, max(int(h.size), block))
	for {
		switch h.op {
		case Up:
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			board.Slot(h.slot).Add(uint64(n))
		case Down:
			if _, err := c.Write(buf); err != nil {
				return err
			}
		case Echo:
			if _, err := io.ReadFull(c, buf[:h.size]); err != nil {
				return err
			}
			if _, err := c.Write(buf[:h.size]); err != nil {
				return err
			}
		}
	}
}

// tlsClient is what RunTLS's goroutines share.
type tlsClient struct {
	Plan
	dial     func(ctx context.Context) (net.Conn, error)
	windowed atomic.Bool
	stopped  atomic.Bool
	bytes    []atomic.Uint64
}

// RunTLS is Run over connections that dial makes. It knows no Hold.
func RunTLS(ctx context.Context, p Plan, dial func(ctx context.Context) (net.Conn, error)) (r Result, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.Warm+p.Length+stall)
	defer cancel()
	c := &tlsClient{Plan: p, dial: dial, bytes: make([]atomic.Uint64, p.Conns)}
	errs := make([]error, p.Conns)
	times := make([]Histogram, p.Conns)
	var wg sync.WaitGroup
	for i := range p.Conns {
		wg.Go(func() {
			errs[i] = c.run(ctx, i, &times[i])
			if errs[i] != nil {
				cancel()
			}
		})
	}
	wait(ctx, p.Warm)
	before := c.received()
	p.Mark()
	began := time.Now()
	c.windowed.Store(true)
	wait(ctx, p.Length)
	c.windowed.Store(false)
	c.stopped.Store(true)
	r.Took = time.Since(began)
	p.Mark()
	r.Bytes = c.received()
	cancel()
	wg.Wait()
	for i := range r.Bytes {
		r.Bytes[i] -= before[i]
		r.Times.Merge(&times[i])
	}
	return r, errors.Join(errs...)
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (c *tlsClient) received() []uint64 {
	all := make([]uint64, c.Conns)
	for i := range all {
		if all[i] = c.bytes[i].Load(); c.Op == Up {
			all[i] = c.Board.Slot(c.Slot + uint32(i)).Load()
		}
	}
	return all
}

// run drives one connection, or when Fresh one after the other. What ends
// because the time has come is no error.
func (c *tlsClient) run(ctx context.Context, i int, times *Histogram) error {
	for !c.stopped.Load() {
		err := c.drive(ctx, i, times)
		if c.stopped.Load() {
			return nil
		}
		if err != nil {
			return fmt.Errorf("connection %d of %d: %w", i+1, c.Conns, err)
		}
	}
	return nil
}

func (c *tlsClient) drive(ctx context.Context, i int, times *Histogram) error {
	began := time.Now()
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	h := head{op: c.Op, slot: c.Slot + uint32(i), size: uint32(c.Size)}.bytes()
	if _, err := conn.Write(h[:]); err != nil {
		return err
	}
	buf := make([]byte, max(c.Size, block))
	if !c.Fresh {
		began = time.Now()
	}
	for {
		switch c.Op {
		case Up:
			if _, err := conn.Write(buf); err != nil {
				return err
			}
		case Down:
			n, err := conn.Read(buf)
			if err != nil {
				return err
			}
			c.bytes[i].Add(uint64(n))
		case Echo:
			if _, err := conn.Write(buf[:c.Size]); err != nil {
				return err
			}
			if _, err := io.ReadFull(conn, buf[:c.Size]); err != nil {
				return err
			}
			now := time.Now()
			if c.windowed.Load() {
				times.Add(now.Sub(began))
			}
			if began = now; c.Fresh {
				return nil
			}
		}
	}
}
