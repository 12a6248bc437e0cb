package hbone_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/warren-mesh/warren/proxy/hbone"
)

// duplicate is the same socket once more.
func duplicate(t *testing.T, c net.Conn) *os.File {
	t.Helper()
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// takesNoMore has every write to a socket fail from now on, and tells its reader
// nothing.
func takesNoMore(t *testing.T, f *os.File) {
	t.Helper()
	if err := syscall.Shutdown(int(f.Fd()), syscall.SHUT_WR); err != nil {
		t.Fatal(err)
	}
}

// TestWritesThatFail end a tunnel, though nothing is heard of its peer; what the peer
// still says in the moment after that is listened to.
func TestWritesThatFail(t *testing.T) {
	p := newPKI(t)
	for name, tc := range map[string]struct {
		last func(*framed)
		want error
	}{
		"the peer says nothing":       {func(*framed) {}, syscall.EPIPE},
		"the peer ends in good order": {func(f *framed) { f.c.Close() }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			o := serveOne(t, p, hbone.Config{}, nil)
			same := duplicate(t, o.ours)
			f := o.framed(t, p)
			if _, err := f.fr.ReadFrame(); err != nil { // the tunnel is up
				t.Fatal(err)
			}
			takesNoMore(t, same)
			_ = f.fr.WritePing(false, [8]byte{}) // whose answer does not get out
			time.Sleep(20 * time.Millisecond)    // nothing can be seen of that
			tc.last(f)
			if err := o.wait(t); !errors.Is(err, tc.want) {
				t.Errorf("Serve: %v, want %v", err, tc.want)
			}
		})
	}
}

// TestNothingIsOpenedOnADeafTunnel: one whose socket takes no more is given no more
// streams, though it has not ended yet.
func TestNothingIsOpenedOnADeafTunnel(t *testing.T) {
	r := newRig(t, "", func(r *rig) { r.answer = acceptAll })
	client := r.pki.client(t, "client")
	var same []*os.File
	pool := hbone.NewPool(r.cfg, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
		c := dial(t, k.Dst.String())
		same = append(same, duplicate(t, c))
		return c, client, nil
	})
	defer pool.Close()
	s, err := pool.Open(t.Context(), r.key(), request())
	if err != nil {
		t.Fatal(err)
	}
	var pulled atomic.Int32
	attach(s, func(dst []byte) (int, error) { pulled.Add(1); return 1, nil }, takeAll, func(error) {})
	takesNoMore(t, same[0])
	isReady(s)
	isReady(s)
	waitUntil(t, "what cannot be sent is asked for no more", func() bool { // one write may be under way
		n := pulled.Load()
		time.Sleep(20 * time.Millisecond) // for a goroutine that would ask again and again
		return pulled.Load() == n
	})
	waitUntil(t, "another tunnel is opened", func() bool { // the write may still be about to fail
		next, err := pool.Open(t.Context(), r.key(), request())
		if err != nil {
			t.Fatal(err)
		}
		defer next.Reset(errors.New("enough"))
		return next.LocalAddr().String() != s.LocalAddr().String()
	})
}

// TestServeIsStopped: a hard end and a drain end a handshake that is under way; a hard
// end also ends a tunnel, and its streams.
func TestServeIsStopped(t *testing.T) {
	p := newPKI(t)
	patient := hbone.Config{HandshakeTimeout: time.Hour}
	for name, stop := range map[string]func(*oneTunnel){
		"killed":  func(o *oneTunnel) { o.kill() },
		"drained": func(o *oneTunnel) { o.drain() },
	} {
		for begun, hello := range map[string]string{"silent": "", "begun": "\x16\x03\x01\x02\x00\x01"} {
			t.Run(name+", "+begun, func(t *testing.T) {
				o := serveOne(t, p, patient, nil)
				mustWrite(t, o.peer, []byte(hello))
				stop(o)
				var te *hbone.TLSError
				if err := o.wait(t); !errors.As(err, &te) {
					t.Errorf("Serve: %v", err)
				}
			})
		}
	}
	t.Run("killed under a stream", func(t *testing.T) {
		ended := make(chan error, 1)
		o := serveOne(t, p, patient, func(in *hbone.Incoming) {
			attach(in.Accept(nil), func([]byte) (int, error) { return 0, nil }, takeAll, func(err error) { ended <- err })
		})
		f := o.framed(t, p)
		_ = f.connect(1, "a:1")
		f.next()
		o.kill()
		var lost *hbone.TunnelError
		if err := <-ended; !errors.As(err, &lost) || !errors.Is(err, context.Canceled) {
			t.Errorf("the stream ended with %v", err)
		}
		if err := o.wait(t); !errors.Is(err, context.Canceled) {
			t.Errorf("Serve: %v", err)
		}
	})
}

// TestOffendersDoNotStay: whatever a peer does that has broken the protocol, its
// tunnel ends soon.
func TestOffendersDoNotStay(t *testing.T) {
	p := newPKI(t)
	for name, then := range map[string]func(*framed){
		"stays and says nothing": func(*framed) {},
		"talks on for ever": func(f *framed) {
			for {
				if _, err := f.conn.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := serveOne(t, p, hbone.Config{}, nil)
			f := o.framed(t, p)
			_ = f.fr.WriteRSTStream(7, http2.ErrCodeNo)
			var wg sync.WaitGroup
			wg.Go(func() { then(f) })
			// What follows may be seen first: it is no record at all.
			if err := o.wait(t); err == nil || !strings.Contains(err.Error(), "idle stream") && !strings.Contains(err.Error(), "version") {
				t.Errorf("Serve: %v", err)
			}
			o.peer.Close()
			wg.Wait()
		})
	}
	t.Run("does not read", func(t *testing.T) {
		full := make(chan struct{})
		var once sync.Once
		o := serveOne(t, p, hbone.Config{}, func(in *hbone.Incoming) {
			s := in.Accept(nil)
			n := 0
			attach(s, func(dst []byte) (int, error) {
				if n += len(dst); n > 8<<20 {
					once.Do(func() { close(full) })
				}
				return len(dst), nil
			}, takeAll, func(error) {})
			go isReady(s)
		})
		f := o.framed(t, p)
		_ = f.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
		_ = f.fr.WriteWindowUpdate(0, 1<<30)
		_ = f.connect(1, "a:1")
		select {
		case <-full:
		case <-time.After(time.Second): // the sockets hold less
		}
		_ = f.fr.WriteRSTStream(7, http2.ErrCodeNo)
		if err := o.wait(t); err == nil || !strings.Contains(err.Error(), "idle stream") {
			t.Errorf("Serve: %v", err)
		}
	})
}

// TestTheNearEndFails: an application's end that cannot say or take more has its
// stream reset.
func TestTheNearEndFails(t *testing.T) {
	broken := errors.New("broken")
	fine := func([]byte) (int, error) { return 0, nil }
	for name, tc := range map[string]struct {
		pull func([]byte) (int, error)
		push func([][]byte) (int, error)
	}{
		"pull": {func([]byte) (int, error) { return 0, broken }, takeAll},
		"push": {fine, func([][]byte) (int, error) { return 0, broken }},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			o := serveOne(t, p, hbone.Config{}, func(in *hbone.Incoming) {
				s := in.Accept(nil)
				attach(s, tc.pull, tc.push, func(error) {})
				go isReady(s)
			})
			f := o.framed(t, p)
			_ = f.connect(1, "a:1")
			f.next()
			_ = f.fr.WriteData(1, false, []byte("x"))
			if r, ok := f.next().(*http2.RSTStreamFrame); !ok || r.ErrCode != http2.ErrCodeConnect {
				t.Errorf("the peer is told %v", r)
			}
			f.c.Close()
			if err := o.wait(t); err != nil && !errors.Is(err, io.EOF) {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}

// TestResetsAsEnds: a reset that came before anybody could say that it is to be taken as an
// end is taken as one, too; one of what the peer did nothing with never is.
func TestResetsAsEnds(t *testing.T) {
	r := newRig(t, "", nil)
	l := frameServer(t, r.pki, func(f *framed) {
		for {
			h, ok := f.next().(*http2.MetaHeadersFrame)
			if !ok {
				continue
			}
			_ = f.headers(h.StreamID, false, ":status", "200")
			_ = f.fr.WriteData(h.StreamID, false, []byte("bye"))
			_ = f.fr.WriteRSTStream(h.StreamID, http2.ErrCodeConnect)
		}
	})
	p := newCountingPool(t, r, hbone.Config{})
	for _, lenient := range []bool{true, false} {
		s, err := p.Open(context.Background(), hbone.Key{Dst: l}, request())
		if err != nil {
			t.Fatal(err)
		}
		waitUntil(t, "the reset has come", func() bool { return p.Stats().Streams == 0 })
		if lenient {
			s.TakeResetsAsEnds()
		}
		var got []byte
		end := make(chan error, 1)
		attach(s, func([]byte) (int, error) { return 0, nil }, func(bufs [][]byte) (int, error) {
			for _, b := range bufs {
				got = append(got, b...)
			}
			return len(got), nil
		}, func(err error) { end <- err })
		err = <-end
		var reset *hbone.ResetError
		var closed interface{ Closed() }
		if !errors.As(err, &reset) || errors.As(err, &closed) != lenient || string(got) != "bye" {
			t.Errorf("%q, %v, taken as an end: %v; want %v", got, err, !lenient, lenient)
		}
	}
}
