package hbone

import (
	"fmt"
	"net"
	"sync"

	"github.com/warren-mesh/warren/proxy/ready"
)

// wire is a tunnel's connection after its handshake: a socket that a readiness
// loop watches, for who reads without waiting and writes waiting or not.
type wire struct {
	sock          ready.Socket
	local, remote net.Addr

	room chan struct{} // there may be room to write again
	dead chan struct{} // closed with the socket
	once sync.Once
}

// take makes the wire the owner of conn, which is closed on error.
func (w *wire) take(conn net.Conn) error {
	w.local, w.remote = conn.LocalAddr(), conn.RemoteAddr()
	w.room, w.dead = make(chan struct{}, 1), make(chan struct{})
	c, ok := conn.(ready.Conn)
	if !ok {
		return fmt.Errorf("hbone: a tunnel needs a socket, not %T", conn)
	}
	return w.sock.Take(c)
}

// writeAll writes all of b. It waits for room, until the wire is closed.
func (w *wire) writeAll(b []byte) error {
	for {
		n, err := w.sock.Write(b)
		if b = b[n:]; err != nil || len(b) == 0 {
			return err
		}
		if err := w.sock.WatchWrites(); err != nil {
			return err
		}
		select {
		case <-w.room:
		case <-w.dead:
			return net.ErrClosed
		}
	}
}

// hasRoom wakes who waits for room.
func (w *wire) hasRoom() { notify(w.room) }

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// close may be called again.
func (w *wire) close() {
	w.once.Do(func() {
		close(w.dead)
		w.sock.Close()
	})
}
