package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/warren-mesh/warren/proxy/ready"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/proxy/track"
)

// Pauses after an accept that failed, for want of descriptors most likely.
const (
	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = time.Second
)

// acceptor is a *net.TCPListener.
type acceptor interface {
	AcceptTCP() (*net.TCPConn, error)
}

// door is where connections come in that are relayed from socket to socket or
// through a tunnel: the loops accept them, and handle, which must not block, has
// them from then on.
type door struct {
	p      *pod
	handle func(*sockopt.Connection, *ready.Turn)
	pause  time.Duration // after accepts that failed
}

// Accepted implements ready.Acceptor.
func (d *door) Accepted(fd int, peer netip.AddrPort, turn *ready.Turn) {
	d.pause = 0
	d.handle(sockopt.Connected(fd, peer), turn)
}

// Failed implements ready.Acceptor.
func (d *door) Failed(err error) time.Duration {
	d.pause = longer(d.pause)
	d.p.log.Warn(acceptFailed, "err", err, "pause", d.pause)
	return d.pause
}

const acceptFailed = "accepting failed, trying again"

func longer(pause time.Duration) time.Duration {
	return min(max(2*pause, acceptPauseMin), acceptPauseMax)
}

// apart is a door's handle that has each connection on a goroutine of its own.
func (p *pod) apart(handle func(*sockopt.Connection)) func(*sockopt.Connection, *ready.Turn) {
	return func(c *sockopt.Connection, turn *ready.Turn) {
		p.work.Go(func() { handle(c) })
		turn.Woke()
	}
}

// accept hands each connection to handle, on a goroutine of its own, until the
// listener is closed.
func (p *pod) accept(l acceptor, handle func(*net.TCPConn)) {
	var pause time.Duration
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			pause = 0
			p.work.Go(func() { handle(c) })
		case errors.Is(err, net.ErrClosed):
			return
		default:
			pause = longer(pause)
			p.log.Warn(acceptFailed, "err", err, "pause", pause)
			wait(p.soft, pause)
		}
	}
}

// wait waits d, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// addrOf is a socket's address, unmapped.
func addrOf(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// accepted is a socket that came in: a *net.TCPConn or *sockopt.Connection.
type accepted interface {
	SetLinger(sec int) error
	Close() error
}

// refuse closes a client's connection so that it sees an error and not the end of
// an answer.
func refuse(c accepted) {
	_ = c.SetLinger(0) // fails on what is closed already
	_ = c.Close()
}

// opened counts an accepted socket; closed is called at its end. A socket beyond
// the pod's share is closed, and false returned.
func (p *pod) opened(d track.Direction, c accepted, src netip.AddrPort) bool {
	if err := p.s.share.take(p); err != nil {
		p.s.logs.early(d, src, netip.AddrPort{}, err)
		refuse(c)
		return false
	}
	p.s.metrics.sockets[d].Add(1)
	return true
}

// closed is the end of what opened counted.
func (p *pod) closed(d track.Direction) {
	p.s.metrics.sockets[d].Add(-1)
	p.s.share.give(p)
}

// dialFunc makes a connection from an address to another.
type dialFunc[C any] = func(context.Context, netip.Addr, netip.AddrPort) (C, error)

// dialApp connects to the application on behalf of client with dial, from the
// client's own address where possible.
func dialApp[C any](ctx context.Context, p *pod, dial dialFunc[C], client netip.Addr, target netip.AddrPort, transparent bool) (C, error) {
	if !transparent || client == target.Addr() || client.Is4() != target.Addr().Is4() {
		client = netip.Addr{} // a pod that calls itself cannot answer itself elsewhere
	}
	c, err := dial(ctx, client, target)
	if err != nil && errors.Is(err, sockopt.ErrSource) && p.s.cfg.Sockets.Transparent != sockopt.On {
		p.log.Warn("the client's address could not be kept", "src.addr", client, "dst.addr", target, "err", err)
		c, err = dial(ctx, netip.Addr{}, target)
	}
	return c, err
}
