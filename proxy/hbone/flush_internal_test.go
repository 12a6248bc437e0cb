package hbone

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone/h2"
	"github.com/warren-mesh/warren/proxy/ready"
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
		reader: reader{busy: true, over: true, end: make(chan error, 1)},
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

// TestDrainSocket: a peer that has been told its offence sees the end of ours, and is
// read for a moment: until it has ended too, or has said a lot more.
func TestDrainSocket(t *testing.T) {
	t.Run("both end", func(t *testing.T) {
		for try := 1; ; try++ {
			u, peer := writer(t, plainLayer{})
			drained := make(chan struct{})
			start := time.Now()
			go func() { u.drainSocket(); close(drained) }()
			_ = peer.SetReadDeadline(time.Now().Add(20 * time.Second))
			if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Fatalf("the peer sees %d, %v", n, err)
			}
			peer.Close()
			for over := false; !over; { // the loop's part
				u.Notify(ready.Readable, nil)
				select {
				case <-drained:
					over = true
				case <-time.After(time.Millisecond):
				}
			}
			if time.Since(start) < linger {
				return
			}
			if try == 5 { // not a slow machine each time
				t.Fatal("the peer's end was not noticed")
			}
		}
	})
	t.Run("a lot more", func(t *testing.T) {
		u, peer := writer(t, plainLayer{})
		_ = peer.SetWriteDeadline(time.Now().Add(time.Second))
		for { // until both sockets are full
			if _, err := peer.Write(make([]byte, 64<<10)); err != nil {
				break
			}
		}
		u.drainSocket()
		buf, left := make([]byte, smallPlain), 0
		for {
			n, again, err := u.wire.sock.Read(buf)
			if left += n; again || err != nil {
				break
			}
		}
		if left == 0 {
			t.Error("all was read, however much it is")
		}
	})
}

// TestGrownBuffersAreNotKept: one that a burst of control frames has made large is
// left to the collector.
func TestGrownBuffersAreNotKept(t *testing.T) {
	for range 100 {
		putBuffer(&buffer{b: make([]byte, 0, 3*bulkPlain)})
		putBuffer(&buffer{b: make([]byte, 0, 3*largePlain)})
		putBuffer(&buffer{b: make([]byte, 0, bulkPlain/2)})
		for _, size := range []int{smallPlain, bulkPlain, largePlain} {
			b := getBuffer(size)
			if cap(b.b) > 2*size+1024 {
				t.Fatalf("got one of %d for %d", cap(b.b), size)
			}
			putBuffer(b)
		}
	}
}

// TestLargeBuffersAreFew: tunnels with few streams get large ones while there are any,
// and they come back.
func TestLargeBuffersAreFew(t *testing.T) {
	before := largeUsed.Load()
	if b, size := getBulk(fewStreams+1, nil); size != bulkPlain || b.large {
		t.Error("a large buffer for many streams")
	}
	var held []*buffer
	for {
		b, size := getBulk(fewStreams, nil)
		held = append(held, b)
		if size != largePlain {
			if b.large {
				t.Error("one more")
			}
			break
		}
		if cap(b.b) < largePlain {
			t.Fatalf("one of %d", cap(b.b))
		}
		if len(held) > maxLarge {
			t.Fatal("they are without end")
		}
	}
	for _, b := range held {
		putBuffer(b)
	}
	b, size := getBulk(fewStreams, nil)
	putBuffer(b)
	if n := largeUsed.Load(); n != before || size != largePlain {
		t.Errorf("%d are in use, were %d", n, before)
	}
}

// TestBuffersKeepToTheBudget: they are as large as it allows, and give back what they took.
func TestBuffersKeepToTheBudget(t *testing.T) {
	for _, tc := range []struct {
		budget int64
		sizes  []int
	}{
		{largePlain + 2*bulkPlain, []int{largePlain, bulkPlain, bulkPlain, smallPlain, smallPlain}},
		{bulkPlain, []int{bulkPlain, smallPlain}},
		{0, []int{smallPlain, smallPlain}},
	} {
		budget := NewBudget(tc.budget)
		var held []*buffer
		for i, want := range tc.sizes {
			b, size := getBulk(1, budget)
			if held = append(held, b); size != want || cap(b.b) < size {
				t.Errorf("with %d: buffer %d is for %d, want %d", tc.budget, i, size, want)
			}
		}
		for _, b := range held {
			putBuffer(b)
		}
		if n := budget.Used(); n != 0 {
			t.Errorf("with %d: %d are not given back", tc.budget, n)
		}
	}
}
