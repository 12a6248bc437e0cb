package relay

import (
	"errors"
	"net"
)

// Flow is one relayed connection.
type Flow struct{}

// Start relays between app and far until both directions have ended. It
// returns at once and takes ownership of both: they are closed when done is
// called, which happens exactly once, from any goroutine; done must not block.
// c may be nil.
func Start(app *net.TCPConn, far Far, c *Counters, done func(Result)) *Flow {
	app.Close()
	far.Reset(errors.ErrUnsupported)
	go done(Result{Err: errors.ErrUnsupported})
	return &Flow{}
}

// Cut ends the flow now: both ends see a reset and done gets err, unless the
// flow had already ended. It may be called from any goroutine and any number
// of times.
func (f *Flow) Cut(err error) {}

type tcpFar struct{ Conn *net.TCPConn }

func (t tcpFar) Attach(func([]byte) (int, error), func([][]byte) (int, error), func(error)) {}
func (t tcpFar) Ready()                                                                      {}
func (t tcpFar) Took(int)                                                                    {}
func (t tcpFar) Reset(error) {
	_ = t.Conn.SetLinger(0)
	_ = t.Conn.Close()
}
