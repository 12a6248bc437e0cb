package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	perServer = 2 * time.Second // before the next one is asked
	rounds    = 2               // over all servers
	maxServer = 8
	udpSize   = 1232
)

// answer is what a resolver says: addresses, or that there are none and why.
type answer struct {
	addrs []netip.Addr
	ttl   time.Duration
	why   string
}

// servers are the resolvers to ask.
type servers struct {
	fixed []netip.AddrPort
	path  string

	mu    sync.Mutex
	read  os.FileInfo
	known []netip.AddrPort
}

// list reads the file again if it has changed. While it cannot be read the last
// state counts.
func (s *servers) list() ([]netip.AddrPort, error) {
	if len(s.fixed) > 0 {
		return s.fixed, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := os.Stat(s.path)
	if err == nil && (s.read == nil || !info.ModTime().Equal(s.read.ModTime()) || info.Size() != s.read.Size() || !os.SameFile(info, s.read)) {
		var c *dns.ClientConfig
		if c, err = dns.ClientConfigFromFile(s.path); err == nil {
			s.read, s.known = info, nil
			for _, text := range c.Servers[:min(len(c.Servers), maxServer)] {
				if a, perr := netip.ParseAddr(text); perr == nil {
					s.known = append(s.known, netip.AddrPortFrom(a, 53))
				}
			}
		}
	}
	if len(s.known) == 0 {
		if err == nil {
			err = errors.New("it names no nameserver")
		}
		return nil, fmt.Errorf("no DNS server is known: %s: %w", s.path, err)
	}
	return s.known, nil
}

// exchange asks one server after the other until one has an answer.
func (r *Resolver) exchange(ctx context.Context, k key) (answer, error) {
	list, err := r.servers.list()
	if err != nil {
		return answer{}, err
	}
	for range rounds {
		for _, s := range list {
			var a answer
			if a, err = ask(ctx, s, k); err == nil {
				return a, nil
			}
			if ctx.Err() != nil {
				break
			}
		}
	}
	return answer{}, err
}

// ask asks a server, by UDP and, when the answer was cut off, by TCP.
func ask(ctx context.Context, server netip.AddrPort, k key) (answer, error) {
	q := new(dns.Msg)
	q.SetQuestion(k.name, k.kind)
	q.SetEdns0(udpSize, false)
	var reply *dns.Msg
	for _, network := range []string{"udp", "tcp"} {
		var err error
		c := dns.Client{Net: network, Timeout: perServer, UDPSize: udpSize}
		if reply, _, err = c.ExchangeContext(ctx, q, server.String()); err != nil {
			return answer{}, fmt.Errorf("DNS server %s: %w", server, plain(err))
		}
		if !reply.Truncated {
			break
		}
	}
	a, err := read(reply, k)
	if err != nil {
		return answer{}, fmt.Errorf("DNS server %s: %w", server, err)
	}
	return a, nil
}

// plain is an error of the network without what the caller says anyway.
func plain(err error) error {
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Timeout():
		return fmt.Errorf("no answer: %w", os.ErrDeadlineExceeded)
	case errors.As(err, &op) && op.Err != nil:
		return op.Err
	}
	return err
}

// read takes the addresses out of a reply: those of the name, or of what it is
// another name for.
func read(reply *dns.Msg, k key) (answer, error) {
	if len(reply.Question) != 1 || !strings.EqualFold(reply.Question[0].Name, k.name) || reply.Question[0].Qtype != k.kind {
		return answer{}, errors.New("the answer is not to the question")
	}
	switch reply.Rcode {
	case dns.RcodeSuccess:
	case dns.RcodeNameError:
		return answer{ttl: negativeTTL(reply), why: ": the name does not exist"}, nil
	default:
		return answer{}, fmt.Errorf("it answers %s", dns.RcodeToString[reply.Rcode])
	}
	names := map[string]bool{k.name: true}
	ttl := uint32(maxTTL / time.Second)
	var a answer
	for _, rr := range reply.Answer { // aliases come before what they lead to
		h := rr.Header()
		if !names[strings.ToLower(h.Name)] || h.Class != dns.ClassINET {
			continue
		}
		switch rr := rr.(type) {
		case *dns.CNAME:
			names[strings.ToLower(rr.Target)] = true
			ttl = min(ttl, h.Ttl)
		case *dns.A:
			ttl = a.add(rr.A, k.kind == dns.TypeA, ttl, h.Ttl)
		case *dns.AAAA:
			ttl = a.add(rr.AAAA, k.kind == dns.TypeAAAA, ttl, h.Ttl)
		}
	}
	a.ttl = time.Duration(ttl) * time.Second
	if len(a.addrs) == 0 {
		a.ttl = negativeTTL(reply)
	}
	return a, nil
}

// add takes an address, unless nothing can be reached there, and returns the lower TTL.
func (a *answer) add(ip net.IP, wanted bool, ttl, own uint32) uint32 {
	addr, ok := netip.AddrFromSlice(ip)
	addr = addr.Unmap()
	if !ok || !wanted || addr.IsUnspecified() || addr.IsMulticast() || len(a.addrs) >= maxAddrs {
		return ttl
	}
	a.addrs = append(a.addrs, addr)
	return min(ttl, own)
}

// negativeTTL is how long a name may be said not to exist (RFC 2308 §5).
func negativeTTL(reply *dns.Msg) time.Duration {
	for _, rr := range reply.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return time.Duration(min(soa.Minttl, soa.Hdr.Ttl)) * time.Second
		}
	}
	return minNegative
}
