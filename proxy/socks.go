package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/proxy/socks5"
	"github.com/warren-mesh/warren/proxy/track"
)

// listenSOCKS opens the pod's port for SOCKS, if there is to be one.
func (p *pod) listenSOCKS(ctx context.Context) (*net.TCPListener, error) {
	if !p.s.cfg.SOCKS5 {
		return nil, nil
	}
	l, _, err := p.sockets.Listen(ctx, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), SOCKS5Port))
	if err != nil {
		return nil, fmt.Errorf("port %d: %w", SOCKS5Port, err)
	}
	p.listeners = append(p.listeners, l)
	return l, nil
}

// socks carries a connection whose client says by SOCKS 5 where it is to go. From
// there on it is like one that was redirected, but that the client is told, once it
// is known, how it went. It owns app.
func (p *pod) socks(app *net.TCPConn) {
	if !p.opened(track.Outbound, app, addrOf(app.RemoteAddr())) {
		return
	}
	stop := context.AfterFunc(p.hard, func() { _ = app.Close() })
	dst, err := p.asked(app)
	if !stop() && err == nil {
		err = errDrain
	}
	if err != nil {
		p.turnAway(app, addrOf(app.RemoteAddr()), dst, err, func(error) {}) // it has been told
		return
	}
	p.outboundTo(app, addrOf(app.RemoteAddr()), dst, func(err error) {
		// A client that is gone will show when there are bytes for it.
		_ = socks5.Answer(app, socksCode(err), netip.AddrPort{}, socksPatience)
	})
}

// welcome tells a client that waits to hear it that it is connected.
func (c *connection) welcome() {
	if c.answer != nil {
		c.answer(nil)
	}
}

// hangUp ends an application's connection that leads nowhere. One that is not told
// why is reset, so that it does not see the end of an answer.
func hangUp(app accepted, err error, answer func(error)) {
	if answer == nil {
		refuse(app)
		return
	}
	answer(err)
	_ = app.Close()
}

// asked is where the client of a new connection wants to go. It has been told if
// that cannot be.
func (p *pod) asked(app *net.TCPConn) (netip.AddrPort, error) {
	r, err := socks5.Accept(app, socksPatience)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr, code := r.Addr, socks5.NotAllowed
	if !addr.IsValid() {
		addr, err = p.lookup(r.Name)
		code = socks5.HostUnreachable
	}
	dst := netip.AddrPortFrom(addr, r.Port)
	if err == nil && addr.IsLoopback() && r.Port == SOCKS5Port {
		err = errRecursive
	}
	if err != nil {
		err = errors.Join(err, socks5.Answer(app, code, netip.AddrPort{}, socksPatience))
	}
	return dst, err
}

// lookup is the pod's own idea of a name: IPv4 first, for every pod but those that
// have none can use that.
func (p *pod) lookup(name string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(p.hard, socksPatience)
	defer cancel()
	var errs error
	for _, ipv6 := range []bool{false, true} {
		if ipv6 && !p.s.cfg.IPv6 {
			break
		}
		addrs, err := p.dns.Lookup(ctx, name, ipv6)
		if err == nil {
			return addrs[0], nil
		}
		errs = errors.Join(errs, err)
	}
	return netip.Addr{}, fmt.Errorf("socks5: %w", errs)
}

// socksCode is an outcome in the words of SOCKS.
func socksCode(err error) socks5.Code {
	var policy *policyError
	var status *hbone.StatusError
	switch {
	case err == nil:
		return socks5.Succeeded
	case errors.Is(err, errRecursive), errors.As(err, &policy), errors.As(err, &status) && status.Code == http.StatusUnauthorized:
		return socks5.NotAllowed
	}
	switch sockopt.ReasonOf(err) {
	case sockopt.Refused:
		return socks5.Refused
	case sockopt.HostUnreachable, sockopt.TimedOut:
		return socks5.HostUnreachable
	case sockopt.NetworkUnreachable:
		return socks5.NetworkUnreachable
	}
	return socks5.GeneralFailure
}
