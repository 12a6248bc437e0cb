package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

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
	dsts, err := p.asked(app)
	if !stop() && err == nil {
		err = errDrain
	}
	if err != nil {
		p.turnAway(app, addrOf(app.RemoteAddr()), dsts[0], err, func(error) {}) // it has been told
		return
	}
	p.outboundTo(app, addrOf(app.RemoteAddr()), dsts[0], func(err error) {
		// A client that is gone will show when there are bytes for it.
		_ = socks5.Answer(app, socksCode(err), netip.AddrPort{}, socksPatience)
	}, dsts[1:]...)
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

// asked is where the client of a new connection wants to go, one of several addresses
// where it says a name; always one at least. It has been told if that cannot be.
func (p *pod) asked(app *net.TCPConn) ([]netip.AddrPort, error) {
	r, err := socks5.Accept(app, socksPatience)
	if err != nil {
		return make([]netip.AddrPort, 1), err
	}
	addrs, code := []netip.Addr{r.Addr}, socks5.NotAllowed
	if !r.Addr.IsValid() {
		addrs, err = p.lookup(r.Name)
		code = socks5.HostUnreachable
	}
	dsts := make([]netip.AddrPort, 0, 1+len(addrs))
	for _, a := range addrs {
		if a.IsLoopback() && r.Port == SOCKS5Port {
			err = errRecursive
		}
		dsts = append(dsts, netip.AddrPortFrom(a, r.Port))
	}
	if err != nil {
		err = errors.Join(err, socks5.Answer(app, code, netip.AddrPort{}, socksPatience))
		dsts = append(dsts, netip.AddrPortFrom(netip.Addr{}, r.Port))
	}
	return dsts, err
}

// lookup is the pod's own idea of a name: IPv4 first, of the families that the pod has as
// far as that is known. Both are asked for at once, and when one has come the other is
// waited for a moment longer: its addresses are for when those do not take the connection.
func (p *pod) lookup(name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(p.hard, socksPatience)
	defer cancel()
	type answer struct {
		six   bool
		addrs []netip.Addr
		err   error
	}
	families := p.lookupFamilies()
	if len(families) == 0 {
		return nil, errors.New("socks5: no family of addresses that the pod has is on")
	}
	answers := make(chan answer, len(families))
	for _, six := range families {
		go func() {
			addrs, err := p.dns.Lookup(ctx, name, six)
			answers <- answer{six, addrs, err}
		}()
	}
	var found [2][]netip.Addr
	var errs error
	for range families {
		a := <-answers
		switch {
		case a.err != nil:
			errs = errors.Join(errs, a.err)
			continue
		case a.six:
			found[1] = a.addrs
		default:
			found[0] = a.addrs
		}
		defer time.AfterFunc(otherFamilyWait, cancel).Stop()
	}
	if all := inTurns(found[0], found[1]); len(all) > 0 {
		return all, nil
	}
	return nil, fmt.Errorf("socks5: %w", errs)
}

// lookupFamilies says of each family that the pod may use whether it is IPv6.
func (p *pod) lookupFamilies() (six []bool) {
	ipv4, ipv6 := true, p.s.cfg.IPv6
	if self := p.current(p.s.store.View()); self != nil && len(self.Addresses) > 0 {
		ipv4 = slices.ContainsFunc(self.Addresses, netip.Addr.Is4)
		ipv6 = ipv6 && slices.ContainsFunc(self.Addresses, netip.Addr.Is6)
	}
	if ipv4 {
		six = append(six, false)
	}
	if ipv6 {
		six = append(six, true)
	}
	return six
}

// inTurns takes one of each, so that not all of what may be tried is of a family that does
// not work (RFC 8305 §4).
func inTurns(a, b []netip.Addr) []netip.Addr {
	all := make([]netip.Addr, 0, len(a)+len(b))
	for i := range max(len(a), len(b)) {
		all = append(append(all, a[min(i, len(a)):min(i+1, len(a))]...), b[min(i, len(b)):min(i+1, len(b))]...)
	}
	return all
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
