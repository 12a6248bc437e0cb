package sockopt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// ErrSource is returned (wrapped) by Dial when the connection cannot be made to
// come from the wanted address. The caller may dial again without one.
var ErrSource = errors.New("cannot use the source address")

// Mode says whether listeners are made transparent.
type Mode int

// Auto makes listeners transparent where the kernel lets it, On fails where it
// does not, Off never tries.
const (
	Auto Mode = iota
	On
	Off
)

// Keepalive is TCP keepalive: the first probe after Idle, the next ones every
// Interval (whole seconds both), dead after Count unanswered ones. The zero
// Keepalive turns it off.
type Keepalive struct {
	Idle, Interval time.Duration
	Count          int
}

// Config is the same for all sockets of one Sockets.
type Config struct {
	Mark           uint32 // SO_MARK; 0 sets none
	Keepalive      Keepalive
	UserTimeout    time.Duration // TCP_USER_TIMEOUT; 0 sets none
	ReusePort      bool          // on listeners and packet sockets
	Transparent    Mode
	ConnectTimeout time.Duration // bounds Dial beside its context; 0 is 10 s
}

// aLongTimeAgo is a deadline that has passed.
var aLongTimeAgo = time.Unix(1, 0)

// What Defaults returns. DefaultMark is the mark that the rules in a pod leave
// alone.
const (
	DefaultMark           = 0x539
	defaultConnectTimeout = 10 * time.Second
)

// Defaults returns the options of a proxy that shares a node's pods.
func Defaults() Config {
	return Config{
		Mark:      DefaultMark,
		Keepalive: Keepalive{Idle: 180 * time.Second, Interval: 180 * time.Second, Count: 9},
		ReusePort: true,
	}
}

// Sockets makes sockets in one namespace. Its methods may be called from
// several goroutines.
type Sockets struct {
	ns  *netns.NS // nil: the process's own
	cfg Config

	// listenTCP is a seam: tests make it fail as a kernel without IPv6 does.
	listenTCP func(ctx context.Context, lc *net.ListenConfig, network, addr string) (net.Listener, error)

	mu        sync.Mutex
	inherited []inherited
}

// New returns a maker of sockets in ns, or in the process's own namespace when
// ns is nil. It takes ownership of ns; Close releases it.
func New(ns *netns.NS, cfg Config) *Sockets {
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = defaultConnectTimeout
	}
	return &Sockets{ns: ns, cfg: cfg, listenTCP: listenTCP}
}

// Close lets go of the namespace and of inherited sockets that nobody asked
// for. Sockets that were made stay open. It may be called more than once.
func (s *Sockets) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, in := range s.inherited {
		err = errors.Join(err, in.file.Close())
	}
	s.inherited = nil
	if s.ns != nil {
		err = errors.Join(err, s.ns.Close())
	}
	return err
}

// Dial connects to dst, from src if that is valid (any port): the address then
// need not be the namespace's own. It takes at most Config.ConnectTimeout, or
// as long as ctx lets it. The socket alone is made inside the namespace, so
// that waiting costs no thread. Errors that are ErrSource concern src only.
func (s *Sockets) Dial(ctx context.Context, src netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	src, dst = src.Unmap(), unmap(dst)
	options, err := s.optionsFor(src, dst, false)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ConnectTimeout)
	defer cancel()
	d := net.Dialer{
		KeepAlive:     -1, // set by our own options
		FallbackDelay: -1, // there is one address
		ControlContext: func(_ context.Context, _, _ string, c syscall.RawConn) error {
			return control(c, func(fd int) error { return s.prepare(fd, family(dst), options) })
		},
	}
	c, err := d.DialContext(ctx, network("tcp", dst), dst.String())
	if err != nil {
		return nil, fmt.Errorf("sockopt: %w", err) // net's text names dst
	}
	return c.(*net.TCPConn), nil
}

// optionsFor are the options of a connection from src, if that is valid, to dst.
func (s *Sockets) optionsFor(src netip.Addr, dst netip.AddrPort, apart bool) ([]Option, error) {
	options := s.dialOptions()
	switch {
	case !src.IsValid():
	case src.Is4() != dst.Addr().Is4():
		return nil, fmt.Errorf("sockopt: dial %s: %w %s: the destination is of the other family", dst, ErrSource, src)
	default:
		options = append(options, Source(src, apart))
	}
	return options, nil
}

// dialOptions are those of every connection that we make. (net sets NoDelay by
// itself.)
func (s *Sockets) dialOptions() []Option {
	options := append(s.marked(), KeepAlive(s.cfg.Keepalive))
	if s.cfg.UserTimeout > 0 {
		options = append(options, UserTimeout(s.cfg.UserTimeout))
	}
	return options
}

// marked is the option that every socket has, whatever it is for.
func (s *Sockets) marked() []Option {
	if s.cfg.Mark == 0 {
		return nil
	}
	return []Option{Mark(s.cfg.Mark)}
}

// prepare puts a socket of our namespace in the place of the one that net made
// in the process's own, and sets its options. net then connects it, with its
// deadlines, on its poller.
func (s *Sockets) prepare(fd, family int, options []Option) error {
	if s.ns == nil {
		return apply(fd, options...)
	}
	inside, err := s.ns.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(inside)
	if err := apply(inside, options...); err != nil {
		return err
	}
	return unix.Dup3(inside, fd, unix.O_CLOEXEC)
}

func family(addr netip.AddrPort) int {
	if addr.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// network says the family outright: net must not judge by the process's own
// namespace what the pod's can do.
func network(proto string, addr netip.AddrPort) string {
	if addr.Addr().Is4() {
		return proto + "4"
	}
	return proto + "6"
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// control runs fn with a socket's descriptor.
func control(c syscall.RawConn, fn func(fd int) error) error {
	var inner error
	if err := c.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return err
	}
	return inner
}
