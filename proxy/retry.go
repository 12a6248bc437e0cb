package proxy

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/relay"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/xds/workload"
)

const (
	// defaultRetries is how many more endpoints a connection goes to when one does
	// not take it: with three a service of four is asked whole, and one that is
	// down altogether gets no more than four times its connections.
	defaultRetries = 3
	maxRetries     = 16
	// retryTime is how long after its beginning a connection goes to yet another
	// endpoint: clients do not wait much longer.
	retryTime = 10 * time.Second
	// connectPatience is how long an endpoint may take for the TCP connection
	// while there is another to go to. The first SYN may get lost in it, which is
	// sent again after a second. Where there is no other, sockopt's limit holds.
	connectPatience = 2 * time.Second
	// answerPatience is how long it may take in all, with the handshake, until its
	// proxy has reached the application. That proxy waits longer than this for an
	// application which hangs; two such endpoints leave time for a third.
	answerPatience = 4 * time.Second
)

// search is the way of a connection to a service through its endpoints, until one
// of them accepts it.
type search struct {
	origDst netip.AddrPort
	more    []netip.AddrPort // where it may go when all of that has failed: further addresses of a name
	began   time.Time
	failed  []attempt // in their order
	behind  bool      // it has been to a gateway again that leads to others behind it
}

// attempt is an endpoint that did not accept.
type attempt struct {
	endpoint route.Endpoint
	err      error
}

// seek prepares for a connection not to be accepted where d says. Nothing is to
// be prepared where there is nothing to choose among.
func (p *pod) seek(d route.Decision, origDst netip.AddrPort) *search {
	if p.s.cfg.ConnectRetries == 0 || d.Attempt() == (route.Endpoint{}) {
		return nil
	}
	return &search{origDst: origDst, began: time.Now()}
}

// tried are the endpoints that are not to be asked again, with those of more.
func (s *search) tried(more ...route.Endpoint) []route.Endpoint {
	for _, a := range s.failed {
		more = append(more, a.endpoint)
	}
	return more
}

// over says whether no further endpoint is to be asked.
func (s *search) over(limit int) bool {
	return len(s.failed) > limit || time.Since(s.began) > retryTime
}

// text says where a connection was in vain, and why. It is safe to ask nobody.
func (s *search) text() string {
	if s == nil {
		return ""
	}
	var b strings.Builder
	for i, a := range s.failed {
		if i > 0 {
			b.WriteString("; ")
		}
		if a.endpoint.Addr.IsValid() {
			b.WriteString(netip.AddrPortFrom(a.endpoint.Addr, a.endpoint.Port).String())
		} else {
			b.WriteString(a.endpoint.UID + " port " + strconv.Itoa(int(a.endpoint.Port)))
		}
		b.WriteString(": " + a.err.Error())
	}
	return b.String()
}

// triedError is the last of several errors, and says the others.
type triedError struct {
	err    error
	before string
}

func (e *triedError) Error() string { return e.err.Error() + " (tried before: " + e.before + ")" }
func (e *triedError) Unwrap() error { return e.err }

// carry has the destination accept the connection, or another endpoint of its
// service, and starts the relay. It owns app. Until an endpoint has accepted,
// nothing is read of app: there is nothing that could be lost or sent twice. err is
// why the endpoint of d has refused already, if it has been asked.
func (p *pod) carry(c *connection, d route.Decision, self *workload.Workload, app accepted, err error) {
	for {
		if err == nil {
			err = p.carryOnce(c, d, self, app)
		}
		if err == nil {
			return
		}
		before := c.search.text()
		next, nextD, nextSelf := c.elsewhere(d, err)
		if next == nil {
			if before != "" {
				err = &triedError{err: err, before: before}
			}
			c.search = nil // err has it all
			c.lost(err, app)
			return
		}
		c, d, self, err = next, nextD, nextSelf, nil
	}
}

// carryOnce carries a decision out. On success the relay owns app.
func (p *pod) carryOnce(c *connection, d route.Decision, self *workload.Workload, app accepted) error {
	if n := p.neighbour(c.guard.Facts.Src, d, self); n != nil {
		return p.outboundHere(c, n, d, self, app)
	}
	far, err := c.dialOut(d, self)
	if err != nil {
		return err
	}
	c.acceptedBy(d, app, far)
	return nil
}

// acceptedBy starts the relay to the endpoint of d.
func (c *connection) acceptedBy(d route.Decision, app accepted, far relay.Far) {
	c.taken(d)
	c.accepted = true
	c.welcome()
	if s, ok := far.(*hbone.Stream); ok && d.Protocol == route.HBONE && endsHBONE(d) {
		s.TakeResetsAsEnds()
	}
	c.relay(app, far)
}

// endsHBONE says whether the peer is no proxy beside an application, but ends HBONE by
// itself, as Envoy does in a waypoint.
func endsHBONE(d route.Decision) bool {
	if d.Destination == nil {
		return d.Waypoint
	}
	return d.Destination.NativeTunnel
}

// taken notes that the endpoint of d has accepted.
func (c *connection) taken(d route.Decision) {
	if c.search == nil {
		return
	}
	c.p.s.resting.wake(d.Endpoint, c.p.account())
	c.p.s.resting.wake(d.Gateway, c.p.account())
	if len(c.search.failed) == 0 {
		c.search = nil // it lives as long as the connection otherwise
	}
}

// elsewhere finds another endpoint after err at the one of d, and gives the
// connection a record of its own there. nil: there is none, or err is not for
// another endpoint to mend.
func (c *connection) elsewhere(d route.Decision, err error) (*connection, route.Decision, *workload.Workload) {
	s, reason := c.search, leftBecause(err)
	if s == nil || reason == "" || c.ctx.Err() != nil {
		return nil, d, nil
	}
	p, asked := c.p, d.Attempt()
	var behind *behindError
	switch {
	case errors.As(err, &behind):
		if asked = d.Endpoint; asked == (route.Endpoint{}) {
			return nil, d, nil
		}
	case asked == (route.Endpoint{}): // the address that was asked for
		asked = route.Endpoint{Addr: s.origDst.Addr(), Port: s.origDst.Port()}
	default:
		p.s.resting.add(guilty(d, reason), p.heardBy(err, reason))
	}
	before := s.tried()
	s.failed = append(s.failed, attempt{asked, err})
	if s.over(p.s.cfg.ConnectRetries) {
		return nil, d, nil
	}
	src := c.guard.Facts.Src
	next, self, err := p.decide(p.hard, src, s.origDst, s.tried())
	if err != nil && self != nil && behind != nil && !s.behind {
		// Nobody else, as is known (else there is no self); but who else may be there. What the
		// way goes through now counts, not what it went through before.
		s.behind = true
		next, self, err = p.decide(p.hard, src, s.origDst, before)
	}
	if err != nil || next.Attempt() == (route.Endpoint{}) {
		if next, self, err = p.further(s, src); err != nil {
			return nil, d, nil
		}
	}
	n, err := p.record(src, s.origDst, next, self)
	if err != nil {
		return nil, d, nil
	}
	n.start, n.search, n.answer = c.start, s, c.answer
	c.goOnAs(n)
	p.s.metrics.retries.WithLabelValues(reason).Inc()
	return n, next, self
}

// further decides about the first of the further addresses of which that is possible.
func (p *pod) further(s *search, src netip.AddrPort) (route.Decision, *workload.Workload, error) {
	for len(s.more) > 0 && !s.over(p.s.cfg.ConnectRetries) {
		s.origDst, s.more = s.more[0], s.more[1:]
		if d, self, err := p.decide(p.hard, src, s.origDst, s.tried()); err == nil {
			return d, self, nil
		}
	}
	return route.Decision{}, nil, errNowhere
}

var errNowhere = errors.New("no further address")

// guilty is who is to rest. A gateway that answers, but has nobody to go on to, is good
// for what else it leads to.
func guilty(d route.Decision, reason string) route.Endpoint {
	if reason == leftUnavailable && d.Endpoint != (route.Endpoint{}) {
		return d.Endpoint
	}
	return d.Attempt()
}

// goOnAs leaves the connection to another record. Who has cut it, or cuts it while that
// happens, meant the connection and not the attempt.
func (c *connection) goOnAs(n *connection) {
	if cut := c.abandon(); cut != nil {
		n.Cut(cut)
	}
}

// abandon ends the record of a connection that goes on under another one. Nobody
// was refused anything: it is closed in good order, and the log is told about it
// at the end of the other. It returns why the connection was cut, if it was.
func (c *connection) abandon() error {
	c.mu.Lock()
	c.ended = true
	abort := c.abort
	c.mu.Unlock()
	abort(nil)
	if c.reserved {
		c.p.s.share.give(c.p)
	}
	c.guard.Release()
	if c.series != nil {
		c.series.end(flagNone)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}

// another says whether there is an endpoint to go to instead of that of d: as elsewhere
// would find it. s is the search as the attempt at d found it, since timers ask: the
// connection's own is changed, and given up, when there is an answer in that moment. Nor is
// the control plane waited for, since the endpoint may answer meanwhile: what it has yet to
// say is no other endpoint.
func (c *connection) another(s search, d route.Decision) bool {
	if len(s.failed) >= c.p.s.cfg.ConnectRetries || time.Since(s.began) > retryTime {
		return false
	}
	behind := d.Protocol == route.DoubleHBONE && d.Gateway == (route.Endpoint{}) // see openInner
	switch {
	case behind && d.Endpoint == (route.Endpoint{}):
		return false
	case len(s.more) > 0:
		return true
	}
	tried := s.tried(d.Attempt())
	if behind && !s.behind {
		tried = s.tried() // the gateway chooses anew
	}
	for range maxRetries {
		next, self, err := c.p.choose(atOnce, c.guard.Facts.Src, s.origDst, tried)
		e := next.Attempt()
		if err != nil || e == (route.Endpoint{}) {
			return false
		}
		// A name that is not known at once is no endpoint yet; of one that is known all
		// addresses may have been tried.
		if _, err := c.p.withAddress(atOnce, next, self, s.origDst, tried); err == nil {
			return true
		}
		tried = append(tried, e)
	}
	return false
}
