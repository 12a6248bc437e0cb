package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/warren-mesh/warren/xds/workload"
)

// Mesh is what a pod can see. Look does not block.
type Mesh interface {
	// Look is the mesh now and the pod's place in it; ok is false while either
	// is not known.
	Look() (v *workload.View, c Client, ok bool)
	// Wait returns once Look is worth another try, or with ctx's error.
	Wait(ctx context.Context) error
}

// Config is a pod's DNS.
type Config struct {
	Zone Zone
	Mesh Mesh

	// Dial opens a socket to a resolver in the pod's namespace that the rules
	// there leave alone. The network is "udp", for a connected socket on a port
	// of the kernel's choice, or "tcp".
	Dial func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error)
	// Resolvers are asked where it is not known whom the pod asked.
	Resolvers func() []netip.AddrPort
	// AskedTCP and AskedUDP say whom the pod asked, where that can be told: the
	// destination before the redirection. They may be nil.
	AskedTCP func(c net.Conn) (netip.AddrPort, error)
	AskedUDP func(client, local netip.AddrPort) (netip.AddrPort, error)

	// Deafen keeps further packets from a socket, for whoever shares its address. It
	// may be nil.
	Deafen func(c PacketConn) error

	// Take counts a descriptor against what the pod may have, Give takes that
	// back. They may be nil.
	Take func() error
	Give func()

	Metrics Metrics // nil: none
	Log     *slog.Logger

	Limits Limits
}

// Limits are bounds of one pod. Zero means the default.
type Limits struct {
	InFlight    int           // queries that wait for a resolver or the mesh: 256
	Connections int           // over TCP: 128
	Pipelined   int           // queries of one connection that wait: 16
	Idle        time.Duration // of a TCP connection, and for one message of it: 5 s
	Turn        time.Duration // that one answer keeps the pod's next one waiting: 5 ms
	Mesh        time.Duration // to wait until the pod is known: 5 s
	Upstream    time.Duration // for one query, over all tries: 4.5 s, within the client's usual 5
	Try         time.Duration // until a query is sent again: 1.5 s
	Transfer    time.Duration // that a server may be silent during a zone transfer: 30 s
	Kept        int           // bytes of resolvers' answers: 128 KiB; negative: none
}

func (l Limits) withDefaults() Limits {
	number := func(n *int, d int) {
		if *n <= 0 {
			*n = d
		}
	}
	period := func(p *time.Duration, d time.Duration) {
		if *p <= 0 {
			*p = d
		}
	}
	number(&l.InFlight, 256)
	number(&l.Connections, 128)
	number(&l.Pipelined, 16)
	if l.Kept == 0 {
		l.Kept = 128 << 10
	}
	period(&l.Idle, 5*time.Second)
	period(&l.Turn, 5*time.Millisecond)
	period(&l.Mesh, 5*time.Second)
	period(&l.Upstream, 4500*time.Millisecond)
	period(&l.Try, 1500*time.Millisecond)
	period(&l.Transfer, 30*time.Second)
	return l
}

func (c *Config) check() error {
	switch {
	case c.Mesh == nil:
		return errors.New("dns: no mesh")
	case c.Dial == nil:
		return errors.New("dns: no way to dial a resolver")
	case c.Resolvers == nil:
		return errors.New("dns: no resolvers")
	case (c.Take == nil) != (c.Give == nil):
		return errors.New("dns: Take and Give belong together")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = noMetrics{}
	}
	if c.Take == nil {
		c.Take, c.Give = func() error { return nil }, func() {}
	}
	c.Limits = c.Limits.withDefaults()
	return nil
}
