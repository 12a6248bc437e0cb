package dns

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// lookupSize is what a Lookup takes over UDP: more than resolvers send, so that
// what they cut off is fetched over TCP.
const lookupSize = 4096

// maxAliases bounds a chain of them.
const maxAliases = 16

// Lookup resolves a host on behalf of the pod, as if it had asked, for those who
// take its requests by name. There is no search list. No address is an error.
func (s *Server) Lookup(ctx context.Context, host string, ipv6 bool) ([]netip.Addr, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.hard, cancel)()
	qtype := dns.TypeA
	if ipv6 {
		qtype = dns.TypeAAAA
	}
	var m dns.Msg
	m.SetQuestion(dns.Fqdn(host), qtype).SetEdns0(lookupSize, false)
	raw, err := m.Pack()
	if err != nil {
		return nil, fmt.Errorf("dns: look up %.300q: %w", host, err)
	}
	reply, t := s.begin(raw, UDP, nil)
	if t != nil {
		if !s.take(t) {
			return nil, fmt.Errorf("dns: look up %s: more than %d queries of the pod are under way", host, s.cfg.Limits.InFlight)
		}
		reply = s.finish(ctx, t)
		s.give()
	}
	addrs, err := addresses(reply, qtype)
	if err != nil {
		return nil, fmt.Errorf("dns: look up %s: %w", host, err)
	}
	return addrs, nil
}

// addresses are those that an answer leads to, through its aliases.
func addresses(reply []byte, qtype uint16) ([]netip.Addr, error) {
	var m dns.Msg
	if err := m.Unpack(reply); err != nil {
		return nil, err
	}
	if m.Rcode != dns.RcodeSuccess || len(m.Question) != 1 {
		return nil, fmt.Errorf("the answer is %s", dns.RcodeToString[m.Rcode])
	}
	owner := m.Question[0].Name
	var out []netip.Addr
	for range maxAliases {
		alias := ""
		for _, rr := range m.Answer {
			if !strings.EqualFold(rr.Header().Name, owner) {
				continue
			}
			switch rr := rr.(type) {
			case *dns.A:
				out = appendAddr(out, rr.A, qtype == dns.TypeA)
			case *dns.AAAA:
				out = appendAddr(out, rr.AAAA, qtype == dns.TypeAAAA)
			case *dns.CNAME:
				alias = rr.Target
			}
		}
		if len(out) > 0 || alias == "" {
			break
		}
		owner = alias
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no such address", owner)
	}
	return out, nil
}

func appendAddr(list []netip.Addr, ip []byte, wanted bool) []netip.Addr {
	if a, ok := netip.AddrFromSlice(ip); ok && wanted {
		return append(list, a.Unmap())
	}
	return list
}
