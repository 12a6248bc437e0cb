package proxy

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/warren-mesh/warren/proxy/proxyproto"
	"github.com/warren-mesh/warren/proxy/relay"
)

// tellTimeout bounds the wait for room for a PROXY header. A connection that was
// just made has room.
const tellTimeout = 5 * time.Second

// dial connects to the application that a CONNECT is for.
func (t *tunnel) dial(ctx context.Context, r *resolved) (relay.App, error) {
	if r.Proxied {
		return t.dialProxied(ctx, r)
	}
	app, err := dialInbound(ctx, t.p, r.conn, t.p.sockets.ConnectLocal, r.Target, t.transparent)
	if err != nil {
		return nil, err
	}
	return app, nil
}

// dialProxied connects to an application that is told by PROXY protocol whose
// connection it is, what for, and who speaks.
func (t *tunnel) dialProxied(ctx context.Context, r *resolved) (relay.App, error) {
	target, transparent := r.Target, t.transparent
	if t.p.s.cfg.LocalhostTunnel {
		target, transparent = netip.AddrPortFrom(loopback(target.Addr()), target.Port()), false
	}
	app, err := dialInbound(ctx, t.p, r.conn, t.p.sockets.Dial, target, transparent)
	if err != nil {
		return nil, err
	}
	h := proxyproto.Header{Src: t.src, Dst: r.Told, Identity: principal(r.conn.guard.Facts.Peer)}
	if err := tell(app, h); err != nil {
		_ = app.Close()
		return nil, &connectError{err}
	}
	return app, nil
}

func tell(app *net.TCPConn, h proxyproto.Header) error {
	if err := app.SetWriteDeadline(time.Now().Add(tellTimeout)); err != nil {
		return err
	}
	if _, err := app.Write(h.Append(nil)); err != nil {
		return err
	}
	return app.SetWriteDeadline(time.Time{})
}

func loopback(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}
