package relay_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/proxy/ready"
	"github.com/warren-mesh/warren/proxy/relay"
)

// detached is an application's connection that gives its descriptor away.
type detached struct {
	fd     int
	closed atomic.Bool
}

func (d *detached) Detach() int  { fd := d.fd; d.fd = -1; return fd }
func (d *detached) Close() error { d.closed.Store(true); return nil }

// detach makes one of c, which is closed.
func detach(t *testing.T, c *net.TCPConn) *detached {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	d := &detached{fd: -1}
	if cerr := raw.Control(func(fd uintptr) { d.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	_ = c.Close()
	return d
}

// TestDetached: a flow takes a descriptor as it takes a connection, at both ends.
func TestDetached(t *testing.T) {
	app, a := conns(t)
	b, backend := conns(t)
	done := make(chan relay.Result, 1)
	newRelay(t).Start(detach(t, a), relay.TCP(detach(t, b)), nil, func(r relay.Result) { done <- r })
	write(t, app, "question")
	_ = app.CloseWrite()
	read(t, backend, "question")
	end(t, backend)
	write(t, backend, "answer")
	_ = backend.CloseWrite()
	read(t, app, "answer")
	end(t, app)
	if r := <-done; r != (relay.Result{Sent: 8, Received: 6}) {
		t.Errorf("%+v", r)
	}
}

// TestNothingToTake: a flow of which an end cannot be had is over at once, and the
// other end is reset.
func TestNothingToTake(t *testing.T) {
	closed := func(t *testing.T) relay.App {
		_, c := conns(t)
		_ = c.Close()
		return c
	}
	gone := func(*testing.T) relay.App { return &detached{fd: -1} }
	for name, app := range map[string]func(*testing.T) relay.App{"closed": closed, "given away": gone} {
		t.Run(name, func(t *testing.T) {
			failed := func(t *testing.T, start func(done func(relay.Result))) {
				done := make(chan relay.Result, 2)
				start(func(r relay.Result) { done <- r })
				if r := <-done; !errors.Is(r.Err, net.ErrClosed) || len(done) > 0 {
					t.Errorf("%+v, and %d more", r, len(done))
				}
			}
			reset := func(t *testing.T, c net.Conn) {
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the other end sees %v", err)
				}
			}
			t.Run("application", func(t *testing.T) {
				b, backend := conns(t)
				r := newRelay(t)
				failed(t, func(done func(relay.Result)) { r.Start(app(t), relay.TCP(b), nil, done) })
				reset(t, backend)
			})
			t.Run("far end", func(t *testing.T) {
				client, a := conns(t)
				r := newRelay(t)
				failed(t, func(done func(relay.Result)) { r.Start(a, relay.TCP(app(t)), nil, done) })
				reset(t, client)
			})
			t.Run("before a stream", func(t *testing.T) {
				m, r := &manual{}, newRelay(t)
				failed(t, func(done func(relay.Result)) { r.Start(app(t), m, nil, done) })
				if err, _ := m.reset.Load().(error); !errors.Is(err, net.ErrClosed) {
					t.Errorf("the stream was reset with %v", err)
				}
			})
		})
	}
}

// pretender is no connection that a flow can take.
type pretender struct{ closed atomic.Bool }

func (p *pretender) Close() error { p.closed.Store(true); return nil }

func TestNoConnection(t *testing.T) {
	p, m := &pretender{}, &manual{}
	done := make(chan relay.Result, 1)
	newRelay(t).Start(p, m, nil, func(r relay.Result) { done <- r })
	if r := <-done; r.Err == nil || !strings.Contains(r.Err.Error(), "pretender") || !p.closed.Load() || m.reset.Load() == nil {
		t.Errorf("%+v, closed %v, reset with %v", r, p.closed.Load(), m.reset.Load())
	}
}

// TestNobodyWatches: without a set that watches, a flow is over at once.
func TestNobodyWatches(t *testing.T) {
	set, err := ready.New(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Close(); err != nil {
		t.Fatal(err)
	}
	r := relay.New(set)
	done := make(chan relay.Result, 1)
	for name, far := range map[string]func() relay.Far{
		"tcp":    func() relay.Far { b, _ := conns(t); return relay.TCP(b) },
		"stream": func() relay.Far { return &manual{} },
	} {
		app, a := conns(t)
		r.Start(a, far(), nil, func(r relay.Result) { done <- r })
		if _, err := io.ReadAll(app); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the application sees %v", name, err)
		}
		if r := <-done; !errors.Is(r.Err, ready.ErrClosed) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
