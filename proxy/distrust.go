package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/proxy/track"
)

const (
	revocationsEvery = 2 * time.Second
	maxRevocations   = 16 << 20
	// A handshake that was judged just before a change may join its pool, or get its first request, for so long after it.
	// 10 s is what a peer has, 15 s what a handshake waits for its turn.
	judgeFor = 30 * time.Second
)

// judgeLate is the age from which a tunnel's first request has its peer judged again: younger ones are met by judgePeers.
// Tests have it be less, while tunnels are served.
var judgeLate = nanoseconds(judgeFor / 2)

func nanoseconds(d time.Duration) *atomic.Int64 {
	n := new(atomic.Int64)
	n.Store(int64(d))
	return n
}

// Reasons why connections end whose peer was good when they began.
var (
	errRevoked    = errors.New("connection closed: peer certificate revoked by CRL")
	errDistrusted = errors.New("connection closed: peer certificate is no longer trusted")
	errEnded      = errors.New("connection closed: peer certificate had expired before its first request")
)

// watchTrust judges the peers of all tunnels again when the file of revocation lists or the roots of an identity
// change.
func (s *Server) watchTrust(ctx context.Context) {
	tick := time.NewTicker(revocationsEvery)
	defer tick.Stop()
	var until time.Time
	var last string
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.rootsChanged:
			until = time.Now().Add(judgeFor)
		case <-tick.C:
			changed, err := s.loadRevocations()
			if text := orNone(err); text != last {
				last = text
				if err != nil {
					s.log.Warn("revocation lists stay as they were", "path", s.cfg.CRLPath, "err", err)
				}
			}
			s.alarms.set(alarmRevocations, unentitled(s.revoked.Unentitled()))
			if changed {
				s.log.Info("revocation lists loaded", "path", s.cfg.CRLPath, "revoked", s.revoked.Len())
				until = time.Now().Add(judgeFor)
			}
		}
		if time.Now().Before(until) {
			s.judgePeers()
		}
	}
}

// alarmRevocations is of lists that others may not heed.
const alarmRevocations = "revocations"

func unentitled(issuer string) string {
	if issuer == "" {
		return ""
	}
	return "a revocation list is heeded although the certificate of its issuer, " + issuer + ", has no cRLSign: other proxies may refuse all that it signed, or not heed the list"
}

// loadRevocations reads the file if it is there; one that has gone leaves what was loaded.
func (s *Server) loadRevocations() (changed bool, err error) {
	if s.cfg.CRLPath == "" {
		return false, nil
	}
	text, err := readBounded(s.cfg.CRLPath, maxRevocations)
	if err != nil || text == nil || s.crlEmptied.justNow(text) {
		return false, err
	}
	return s.revoked.Load(text)
}

// emptied is of a file that is looked at again and again: whether it was empty the last time. Writers empty what they write
// anew, and what is trusted, or revoked, is not to be forgotten for that moment.
type emptied bool

// justNow takes what was read, and says to go on with what was there before.
func (e *emptied) justNow(text []byte) bool {
	was := *e
	*e = emptied(len(bytes.TrimSpace(text)) == 0)
	return bool(*e && !was)
}

// judgePeers ends the tunnels whose peers no handshake would accept now, and what has none on this node.
func (s *Server) judgePeers() {
	s.proven.forget()
	for _, p := range s.pods.list() {
		i := p.heldIdentity() // also one that has ended: connections outlive it
		if i == nil {
			continue
		}
		p.pool.End(func(cs tls.ConnectionState) error {
			err := distrusts(i, cs.PeerCertificates, x509.ExtKeyUsageServerAuth)
			s.metrics.svids.cut(track.Outbound, err)
			return err
		})
		p.judgeInners(i)
		for _, t := range p.accepted() {
			if err := distrusts(i, t.peer(), x509.ExtKeyUsageClientAuth); err != nil {
				t.kill(err)
			}
		}
	}
	s.judgeHere()
}

// proof is what the two ends of a connection that stays on the node have shown each other.
type proof struct {
	client, server []*x509.Certificate
	to             *pod
}

// judgeHere ends connections on this node of which one end would not accept the other any more: as behind a tunnel, by
// what it was made with, whatever has replaced that since.
func (s *Server) judgeHere() {
	type question struct {
		who   *mtls.Identity
		leaf  *x509.Certificate
		usage x509.ExtKeyUsage
	}
	known := make(map[question]error)
	ask := func(p *pod, chain []*x509.Certificate, usage x509.ExtKeyUsage) error {
		i := p.heldIdentity()
		if i == nil || len(chain) == 0 {
			return nil
		}
		q := question{i, chain[0], usage}
		err, ok := known[q]
		if !ok {
			err = distrusts(i, chain, usage)
			known[q] = err
		}
		return err
	}
	s.tracked.Each(func(g *track.Guard) {
		c, ok := g.Owner.(*connection)
		if !ok {
			return
		}
		c.mu.Lock()
		shown := c.shown
		c.mu.Unlock()
		if shown == nil {
			return
		}
		at, err := track.Outbound, ask(c.p, shown.server, x509.ExtKeyUsageServerAuth)
		if err == nil {
			at, err = track.Inbound, ask(shown.to, shown.client, x509.ExtKeyUsageClientAuth)
		}
		if err != nil {
			g.Cut(err)
			s.metrics.svids.cut(at, err)
		}
	})
}

// distrusts says why i would not accept a peer any more. That a certificate has ended since is no reason: connections
// outlive theirs.
func distrusts(i *mtls.Identity, chain []*x509.Certificate, usage x509.ExtKeyUsage) error {
	if len(chain) == 0 {
		return nil // not known yet
	}
	for _, at := range moments(chain, i.RootsFor(chain), time.Now()) {
		switch _, err := i.VerifyPeer(chain, usage, at); {
		case err == nil:
			return nil
		case errors.Is(err, mtls.ErrRevoked):
			return errRevoked // whatever it shows beside that has ended before
		}
	}
	return errDistrusted
}

// moments are the leaf's end or now, and before that, since the leaf began, the ends of what it may hang from, latest first:
// whatever way up was good when the peer proved itself is good at one of them, if it is still trusted. The latest at which
// there is a way counts.
func moments(chain, roots []*x509.Certificate, now time.Time) (all []time.Time) {
	leaf := chain[0]
	last := now
	if last.After(leaf.NotAfter) {
		last = leaf.NotAfter
	}
	all = append(all, last)
	for _, c := range append(slices.Clone(chain[1:]), roots...) {
		if end := c.NotAfter; end.Before(last) && !end.Before(leaf.NotBefore) {
			all = append(all, end)
		}
	}
	slices.SortFunc(all, func(a, b time.Time) int { return b.Compare(a) })
	return all
}

func (p *pod) heldIdentity() *mtls.Identity {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lease == nil {
		return nil
	}
	return p.lease.Held()
}

// accepted lists the tunnels that peers have made.
func (p *pod) accepted() (all []*tunnel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for t := range p.inboundTunnels {
		all = append(all, t)
	}
	return all
}

// join and leave keep the list of tunnels.
func (t *tunnel) join() {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	if t.p.inboundTunnels == nil {
		t.p.inboundTunnels = make(map[*tunnel]struct{})
	}
	t.p.inboundTunnels[t] = struct{}{}
}

func (t *tunnel) leave() {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	delete(t.p.inboundTunnels, t)
}

// stillGood judges a peer whose first request comes long after its handshake: until then its certificates are not known
// here, and whatever has changed since has judged everybody else.
func (t *tunnel) stillGood() error {
	t.judge.Do(func() {
		chain, i := t.peer(), t.p.heldIdentity()
		switch {
		case time.Since(t.born) < time.Duration(judgeLate.Load()) || len(chain) == 0 || i == nil:
		case time.Now().After(chain[0].NotAfter):
			t.late = errEnded
		default:
			t.late = distrusts(i, chain, x509.ExtKeyUsageClientAuth)
		}
	})
	return t.late
}

// peer is the certificates of the client, none before its first request.
func (t *tunnel) peer() []*x509.Certificate {
	if certs := t.certs.Load(); certs != nil {
		return *certs
	}
	return nil
}
