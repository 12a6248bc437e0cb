package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/warren-mesh/warren/proxy/dns"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/xds/workload"
)

// openDNS makes the pod's DNS, and opens its sockets: the rules in the pod turn
// queries to loopback, where the answers have to come from. A pod whose loopback
// has no IPv6 address has none to turn them to.
func (p *pod) openDNS(ctx context.Context) (err error) {
	if !p.s.cfg.DNS && !p.s.cfg.SOCKS5 {
		return nil
	}
	if p.dns, err = dns.New(p.dnsConfig()); err != nil {
		return err
	}
	if !p.s.cfg.DNS {
		return nil // it is there to look names up
	}
	for _, loopback := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		addr := netip.AddrPortFrom(loopback, DNSPort)
		// The packet socket first: a transparent listener may be bound to any address.
		c, err := p.sockets.ListenPacket(ctx, addr)
		if loopback.Is6() && sockopt.NoIPv6(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("port %d: %w", DNSPort, err)
		}
		l, _, err := p.sockets.Listen(ctx, addr)
		if err != nil {
			return errors.Join(fmt.Errorf("port %d: %w", DNSPort, err), c.Close())
		}
		p.queries = append(p.queries, l)
		p.work.Go(func() { p.dns.ServeStream(l) })
		p.work.Go(func() { p.dns.ServePacket(c) })
	}
	return nil
}

func (p *pod) dnsConfig() dns.Config {
	cfg := p.s.cfg
	return dns.Config{
		Zone: dns.Zone{Partial: cfg.OnDemand, Domain: cfg.ClusterDomain, Search: p.search(), Prefer: cfg.PreferNamespace, IPv6: cfg.IPv6},
		Mesh: podMesh{p}, Dial: p.dialResolver, Resolvers: p.s.resolvers,
		AskedTCP: func(c net.Conn) (netip.AddrPort, error) {
			if l, ok := c.(*net.TCPConn); ok {
				return sockopt.OriginalDst(l)
			}
			return netip.AddrPort{}, errors.ErrUnsupported
		},
		AskedUDP: p.sockets.OriginalPacketDst,
		Deafen: func(c dns.PacketConn) error {
			if u, ok := c.(*net.UDPConn); ok {
				return sockopt.Deafen(u)
			}
			return errors.ErrUnsupported
		},
		Take:    func() error { return p.s.share.take(p) },
		Give:    func() { p.s.share.give(p) },
		Metrics: podQueries{p}, Log: p.s.logs.scope("dns").With("src.workload", p.info.Name, "src.namespace", p.info.Namespace),
	}
}

// search are the domains that the pod's resolver appends, where they can be known:
// a proxy of its own has the pod's files.
func (p *pod) search() []string {
	if p.s.resolv == nil || !p.s.cfg.Dedicated {
		return nil
	}
	return p.s.resolv.Search()
}

func (p *pod) dialResolver(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	if network == "udp" {
		return p.sockets.DialPacket(dst)
	}
	return p.sockets.Dial(ctx, netip.Addr{}, dst)
}

// shutDNS takes no more queries, and returns when those in flight have been
// answered, or ctx ends.
func (p *pod) shutDNS(ctx context.Context) {
	if p.dns != nil {
		p.dns.Shutdown(ctx)
	}
}

// endDNS ends the pod's DNS now. It may be called more than once.
func (p *pod) endDNS() {
	if p.dns != nil {
		_ = p.dns.Close() // it has no error
	}
}

// podMesh is the mesh as a pod's DNS sees it.
type podMesh struct{ p *pod }

func (m podMesh) Look() (*workload.View, dns.Client, bool) {
	v := m.p.s.store.View()
	w := m.p.speaking(v)
	if w == nil {
		return nil, dns.Client{}, false
	}
	return v, dns.Client{Namespace: w.Namespace, Network: w.Network}, true
}

func (m podMesh) Wait(ctx context.Context) error {
	return m.p.s.store.Wait(ctx, func(v *workload.View) bool { return m.p.speaking(v) != nil })
}

// openResolvers reads whom to ask where it is not known whom the pod asked. Most pods are
// known by that: a bad file is no reason to serve none.
func (s *Server) openResolvers() {
	if !s.cfg.DNS && !s.cfg.SOCKS5 {
		return
	}
	var err error
	if s.resolv, err = dns.OpenResolv(s.cfg.ResolvConf); err != nil {
		s.log.Warn("there is no resolver of the proxy's own: names go to the one that a pod asked, and nowhere where that is not known", "err", err)
	}
	if skipped := s.resolv.Skipped(); len(skipped) > 0 {
		s.log.Warn("not all of the proxy's own resolvers are IP addresses: these are left out", "path", s.cfg.ResolvConf, "nameservers", skipped)
	}
}

func (s *Server) resolvers() []netip.AddrPort {
	if s.resolv == nil {
		return nil
	}
	return s.resolv.Servers()
}
