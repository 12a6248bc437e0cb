package relay

import (
	"fmt"
	"net"

	"github.com/warren-mesh/warren/proxy/ready"
)

// Flow is one relayed connection.
type Flow struct{ c cutter }

// cutter is the part of a flow that Cut needs.
type cutter interface{ fail(error) }

// Relay starts flows whose sockets wait in one set.
type Relay struct{ set *ready.Set }

// New returns a Relay. The set stays the caller's: it is closed after the last
// flow has ended.
func New(set *ready.Set) *Relay { return &Relay{set} }

// App is a TCP connection of an application: a *net.TCPConn, or a connected socket
// that gives its descriptor away by Detach() int.
type App interface{ Close() error }

// Start relays between app and far until both directions have ended. It
// returns at once and takes ownership of both: they are closed when done is
// called, which happens exactly once, from any goroutine and possibly before
// Start returns; done must not block. c may be nil.
func (r *Relay) Start(app App, far Far, c *Counters, done func(Result)) *Flow {
	if c == nil {
		c = new(Counters)
	}
	if t, ok := far.(tcpFar); ok {
		return startSockets(r.set, app, t.conn, c, done)
	}
	return startStream(r.set, app, far, c, done)
}

// Cut ends the flow now: both ends see a reset and done gets err, unless the
// flow had already ended. It may be called from any goroutine and any number
// of times.
func (f *Flow) Cut(err error) { f.c.fail(err) }

// take makes k the owner of app's socket. On error that is closed.
func take(k *ready.Socket, app App) error {
	switch a := app.(type) {
	case *net.TCPConn:
		return k.Take(a)
	case interface{ Detach() int }:
		if fd := a.Detach(); fd >= 0 {
			k.Own(fd)
			return nil
		}
		return net.ErrClosed
	}
	_ = app.Close()
	return fmt.Errorf("relay: %T is no application's connection", app)
}

// socketFailure returns what broke the socket; nil when a call has been told
// already.
func socketFailure(k *ready.Socket) error {
	fd, ok := k.Acquire()
	if !ok {
		return nil
	}
	defer k.Release()
	return failure(fd)
}

// closeWrite ends our direction of a socket, which may be over already.
func closeWrite(k *ready.Socket) error {
	fd, ok := k.Acquire()
	if !ok {
		return net.ErrClosed
	}
	defer k.Release()
	return shutdown(fd)
}
