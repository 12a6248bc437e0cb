package ready_test

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/proxy/ready"
)

// doorman is an acceptor that hands on what came in.
type doorman struct {
	in    chan netip.AddrPort
	fails chan error
	pause atomic.Int64 // nanoseconds
}

func (d *doorman) Accepted(fd int, peer netip.AddrPort, _ *ready.Turn) {
	d.in <- peer
	_ = unix.Close(fd)
}

func (d *doorman) Failed(err error) time.Duration {
	d.fails <- err
	return max(time.Duration(d.pause.Load()), time.Millisecond)
}

func listen(t *testing.T, s *ready.Set) (*doorman, *ready.Listener) {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &doorman{in: make(chan netip.AddrPort, 1000), fails: make(chan error, 1000)}
	l, err := s.Listen(tcp.(*net.TCPListener), d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return d, l
}

// More connections at once than a turn takes all come in, each as who it is.
func TestListener(t *testing.T) {
	d, l := listen(t, newSet(t, 1))
	const many = 100
	want := make(map[string]bool)
	for range many {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		want[c.LocalAddr().String()] = true
	}
	for range many {
		peer := (<-d.in).String()
		if !want[peer] {
			t.Fatalf("%s came in, or came twice", peer)
		}
		delete(want, peer)
	}
}

// Those that were waiting before anybody listened come in too, all of them.
func TestListenerBacklog(t *testing.T) {
	s := newSet(t, 1)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const many = 50
	for range many {
		c, err := net.Dial("tcp", tcp.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	d := &doorman{in: make(chan netip.AddrPort, many), fails: make(chan error, 1)}
	l, err := s.Listen(tcp.(*net.TCPListener), d)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range many {
		<-d.in
	}
}

// knocks makes sockets, has them connect to l when there are no descriptors left, and then runs meanwhile.
func knocks(t *testing.T, l *ready.Listener, n int, meanwhile func()) {
	t.Helper()
	var all []int
	for range n {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(c) })
		all = append(all, c)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	none := old
	none.Cur = 3 // all that are lower are taken
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	var err error
	for _, c := range all {
		err = errors.Join(err, unix.Connect(c, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte{127, 0, 0, 1}}))
	}
	if err == nil {
		meanwhile()
	}
	if err := errors.Join(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)); err != nil {
		t.Fatal(err)
	}
}

// Without descriptors accepting fails, and is tried again until there are some.
func TestListenerSurvives(t *testing.T) {
	d, l := listen(t, newSet(t, 1))
	var first, second error
	knocks(t, l, 1, func() { first, second = <-d.fails, <-d.fails })
	if !errors.Is(first, unix.EMFILE) || !errors.Is(second, unix.EMFILE) {
		t.Errorf("%v, then %v", first, second)
	}
	<-d.in
}

// However many knock while it rests, it tries again when it has said, and they all come in then.
func TestListenerRests(t *testing.T) {
	d, l := listen(t, newSet(t, 1))
	const pause = time.Second
	d.pause.Store(int64(pause))
	const many = 50
	start := time.Now()
	knocks(t, l, many, func() { <-d.fails })
	for range many {
		<-d.in
	}
	// On a slow machine the rest may be over before all have knocked.
	if n := len(d.fails); n > int(time.Since(start)/pause) {
		t.Errorf("%d more tries failed in %v", n, time.Since(start))
	}
}

// After Close nothing comes in, and nobody is let in: the port is free.
func TestListenerClose(t *testing.T) {
	d, l := listen(t, newSet(t, 1))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closing again: %v", err)
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("a closed listener took a connection")
	}
	again, err := net.Listen("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if len(d.in) > 0 {
		t.Error("a connection came in")
	}
}
