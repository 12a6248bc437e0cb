package hbone

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/warren-mesh/warren/proxy/hbone/h2"
)

// plainLayer is a record layer that adds nothing, or fails behind an alert.
type plainLayer struct{ err error }

func (l plainLayer) Seal(dst, plain []byte) ([]byte, error) {
	if l.err != nil {
		return append(dst, "alert"...), l.err
	}
	return append(dst, plain...), nil
}
func (plainLayer) Open(dst, src []byte) ([]byte, int, error) {
	return append(dst, src...), len(src), nil
}
func (plainLayer) CloseWrite(dst []byte) ([]byte, error) { return append(dst, "close_notify"...), nil }
func (plainLayer) Pending() bool                         { return false }
func (plainLayer) State() tls.ConnectionState            { return tls.ConnectionState{} }

// writer is a tunnel that nobody reads, and whose writer role the test has.
func writer(t *testing.T, rec plainLayer) (u *tunnel, peer net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if peer, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	u = &tunnel{
		onChange: func() {}, rec: rec, h2: h2.NewServer(h2.Config{}), writing: true,
		reader: reader{busy: true, end: make(chan error, 1)},
	}
	u.wrote.L = &u.mu
	if err := u.wire.take(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.wire.close)
	return u, peer
}

// TestFlushDoesNotWait: with nothing more to send on a tunnel that is to be closed it
// leaves our last words to a goroutine, for there may be no room for them, and who
// calls may be the loop that has to tell of room.
func TestFlushDoesNotWait(t *testing.T) {
	u, _ := writer(t, plainLayer{})
	for n := 1; n > 0; { // until there is no room
		var err error
		if n, err = u.wire.sock.Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
	}
	u.mu.Lock()
	u.h2.GoAway(true, 0)
	u.h2.AppendControl(nil) // it is out
	u.closing = true
	u.mu.Unlock()
	u.Flush()
	u.mu.Lock()
	waited := u.reader.closed
	u.mu.Unlock()
	if waited {
		t.Error("Flush waited until the wire was closed")
	}
	<-u.wire.dead // by the timer
}

// TestSealingFails: the alert that says why goes out, and the tunnel ends.
func TestSealingFails(t *testing.T) {
	broken := errors.New("broken")
	u, peer := writer(t, plainLayer{broken})
	u.Flush()
	if got, err := io.ReadAll(peer); string(got) != "alert" {
		t.Errorf("the peer got %q, %v", got, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	var te *TLSError
	if !errors.As(u.err, &te) || !errors.Is(u.err, broken) {
		t.Errorf("the tunnel ended with %v", u.err)
	}
}

// TestGrownBuffersAreNotKept: one that a burst of control frames has made large is
// left to the collector.
func TestGrownBuffersAreNotKept(t *testing.T) {
	for range 100 {
		putBuffer(&buffer{make([]byte, 0, 3*bulkPlain)})
		if b := getBuffer(bulkPlain); cap(b.b) > 2*bulkPlain {
			t.Fatalf("got one of %d", cap(b.b))
		}
	}
}
