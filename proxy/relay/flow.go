package relay

import (
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

// App is an application's connection: a *net.TCPConn or, with a far end that is not
// TCP, a connected socket that gives its descriptor away by Detach() int.
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
		return &Flow{startSplice(app.(*net.TCPConn), t.conn, c, done)}
	}
	return startStream(r.set, app, far, c, done)
}

// Cut ends the flow now: both ends see a reset and done gets err, unless the
// flow had already ended. It may be called from any goroutine and any number
// of times.
func (f *Flow) Cut(err error) { f.c.fail(err) }

// reset closes a connection so that its peer sees a reset, not an end.
func reset(c *net.TCPConn) {
	// An error means that it is closed already.
	_ = c.SetLinger(0)
	_ = c.Close()
}
