package sockopt

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
)

var errNotBuilt = errors.New("sockopt: not built yet")

// ErrSource says (wrapped) that a connection could not be made to come from the
// wanted source address. The caller may dial again without one.
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

// Keepalive is TCP keepalive: first probe after Idle, then every Interval,
// dead after Count unanswered ones. All zero turns it off.
type Keepalive struct {
	Idle, Interval time.Duration
	Count          int
}

// Config is the same for all sockets of one Sockets.
type Config struct {
	Mark           uint32 // SO_MARK; 0 sets none
	Keepalive      Keepalive
	UserTimeout    time.Duration // TCP_USER_TIMEOUT; 0 sets none
	ReusePort      bool          // SO_REUSEPORT on listeners and packet sockets
	Transparent    Mode
	ConnectTimeout time.Duration // bounds Dial beside its context; 0 is 10 s
}

// Sockets makes sockets in one namespace.
type Sockets struct {
	ns  *netns.NS
	cfg Config
}

// New returns a maker of sockets in ns, or in the process's own namespace when
// ns is nil. It takes ownership of ns.
func New(ns *netns.NS, cfg Config) *Sockets { return &Sockets{ns: ns, cfg: cfg} }

// Inherit returns a Sockets whose listeners were opened by another process.
func Inherit(ns *netns.NS, cfg Config, listeners []*os.File) (*Sockets, error) {
	return nil, errNotBuilt
}

// Listen listens for TCP on addr and says whether the listener is transparent.
func (s *Sockets) Listen(ctx context.Context, addr netip.AddrPort) (l *net.TCPListener, transparent bool, err error) {
	return nil, false, errNotBuilt
}

// ListenPacket opens a UDP socket on addr.
func (s *Sockets) ListenPacket(ctx context.Context, addr netip.AddrPort) (*net.UDPConn, error) {
	return nil, errNotBuilt
}

// Dial connects to dst, from src if that is valid.
func (s *Sockets) Dial(ctx context.Context, src netip.Addr, dst netip.AddrPort) (*net.TCPConn, error) {
	return nil, errNotBuilt
}

// Close lets go of the namespace. Sockets that were made stay open.
func (s *Sockets) Close() error { return nil }

// OriginalDst returns the address that the client of a redirected connection
// wanted.
func OriginalDst(c *net.TCPConn) (netip.AddrPort, error) { return netip.AddrPort{}, errNotBuilt }
