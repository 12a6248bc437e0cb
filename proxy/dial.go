package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/relay"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/xds/workload"
)

// dialOut carries a decision out: it returns once the destination has accepted.
func (c *connection) dialOut(d route.Decision, self *workload.Workload) (relay.Far, error) {
	switch d.Protocol {
	case route.TCP:
		return c.dialTCP(d)
	case route.HBONE:
		return c.dialHBONE(d, self)
	case route.DoubleHBONE:
		return c.dialDouble(d, self)
	default:
		return nil, fmt.Errorf("%s: nobody dials %s", d.Dial, d.Protocol)
	}
}

// dialTCP connects to what takes bytes as they are.
func (c *connection) dialTCP(d route.Decision) (relay.Far, error) {
	if err := c.reserve(); err != nil {
		return nil, err
	}
	ctx, done := c.patiently(c.ctx, d, since())
	defer done()
	far, err := c.p.sockets.Connect(ctx, netip.Addr{}, d.Dial)
	if err != nil {
		return nil, &upstreamError{err}
	}
	return relay.TCP(far), nil
}

// dialHBONE opens a stream through a tunnel to a workload or a waypoint.
func (c *connection) dialHBONE(d route.Decision, self *workload.Workload) (relay.Far, error) {
	far, err := c.openStream(d, self, connectHeader(c.guard.Facts.Src, self, d))
	if err != nil {
		return nil, err
	}
	return far, nil
}

// openStream has the decision's peer accept a CONNECT.
func (c *connection) openStream(d route.Decision, self *workload.Workload, header [][2]string) (*hbone.Stream, error) {
	key, err := c.streamTo(c.ctx, d, self)
	if err != nil {
		return nil, err
	}
	ctx, done := c.patiently(c.ctx, d, c.p.connects.of(key))
	defer done()
	s, err := c.p.pool.Open(ctx, key, hbone.Request{Authority: c.hbone, Header: header})
	if err != nil {
		return nil, c.openError(d, err)
	}
	return s, nil
}

// streamTo names the tunnels to the decision's peer.
func (c *connection) streamTo(ctx context.Context, d route.Decision, self *workload.Workload) (hbone.Key, error) {
	// A warm tunnel would do without; the pod may have lost its identity since.
	if _, err := c.p.identity(ctx, self); err != nil {
		return hbone.Key{}, err
	}
	return hbone.Key{Src: self.Identity(), Expected: joinIDs(d.Expected), Dst: d.Dial, SrcIP: c.guard.Facts.Src.Addr()}, nil
}

func (c *connection) openError(d route.Decision, err error) error {
	if errors.Is(err, hbone.ErrClosed) {
		if context.Cause(c.p.hard) != nil {
			return errDrain
		}
		return errors.New("pool draining")
	}
	return tunnelError(d.Dial, err)
}

// connectHeader is what the peer is told about who calls whom.
func connectHeader(client netip.AddrPort, self *workload.Workload, d route.Decision) [][2]string {
	host := ""
	if d.ServiceAddressed && d.Service != nil {
		host = d.Service.Hostname
	}
	return [][2]string{
		{"baggage", route.BaggageOf(self).String()},
		{"forwarded", route.Forwarded(client, host)},
		{"traceparent", newTrace().String()},
	}
}
