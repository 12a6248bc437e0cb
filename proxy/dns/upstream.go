package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	// strays is how many wrong answers one socket takes before it is given up:
	// somebody guesses.
	strays = 32
	// usualUDP is the size that resolvers cut their answers to on their own
	// account, whatever the client takes. A client that takes more gets what
	// TCP brings.
	usualUDP = 1232
	// betweenRounds is how long resolvers that all failed are left alone.
	betweenRounds = 100 * time.Millisecond
)

var (
	errStrays     = errors.New("answers something else than was asked")
	errNoResolver = errors.New("no resolver is known")
)

// exchange asks the resolvers in turn until one has an answer or time is up. The
// result of the last one is taken, be it a failure of its own.
func (s *Server) exchange(ctx context.Context, q *query, servers []netip.AddrPort) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Limits.Upstream)
	defer cancel()
	var last []byte
	err := errNoResolver
	for tries := 1; len(servers) > 0 && tries <= 2*maxResolvers && ctx.Err() == nil; tries++ {
		reply, why := s.ask(ctx, q, servers[(tries-1)%len(servers)], len(servers) == 1)
		switch {
		case why != nil:
			err = why
		case unable(reply):
			last = reply
		default:
			return reply, nil
		}
		if tries%len(servers) == 0 && (last != nil || !pause(ctx)) {
			break
		}
	}
	if last != nil {
		return last, nil
	}
	return nil, err
}

// pause is before the resolvers are asked again, in case they refuse at once.
func pause(ctx context.Context) bool {
	t := time.NewTimer(betweenRounds)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// unable says whether an answer is that this resolver has none.
func unable(reply []byte) bool {
	switch rcodeOf(reply) {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
		return true
	}
	return false
}

// ask asks one resolver, for as long as it is its turn.
func (s *Server) ask(ctx context.Context, q *query, server netip.AddrPort, alone bool) ([]byte, error) {
	if err := s.cfg.Take(); err != nil {
		return nil, err
	}
	defer s.cfg.Give()
	if !alone {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.cfg.Limits.Try)
		defer cancel()
	}
	if q.transport == TCP {
		return s.askTCP(ctx, q, server)
	}
	reply, err := s.askUDP(ctx, q, server)
	if err == nil && truncated(reply) && q.size > usualUDP {
		if whole, err := s.askTCP(ctx, q, server); err == nil && len(whole) <= q.size {
			return whole, nil
		}
	}
	if err == nil {
		reply = shorten(reply, q.size)
	}
	return reply, err
}

// fresh is the query under an ID that only the resolver learns. The source is the
// runtime's, which is seeded by the kernel and cannot be predicted.
func fresh(raw []byte) []byte {
	out := append([]byte(nil), raw...)
	binary.BigEndian.PutUint16(out, uint16(rand.Uint32()))
	return out
}

func (s *Server) dial(ctx context.Context, network string, server netip.AddrPort) (net.Conn, func(), error) {
	c, err := s.cfg.Dial(ctx, network, server)
	if err != nil {
		return nil, nil, fmt.Errorf("resolver %s: %w", server, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	return c, func() { stop(); _ = c.Close() }, nil
}

// askUDP sends the query, again and again, and takes the first answer to it. The
// socket is its own: an answer has to come to its port as well.
func (s *Server) askUDP(ctx context.Context, q *query, server netip.AddrPort) ([]byte, error) {
	c, done, err := s.dial(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer done()
	asked := fresh(q.raw)
	buf := make([]byte, max(q.size, usualUDP)+1)
	for wrong := 0; ; {
		if _, err := c.Write(asked); err != nil {
			return nil, fmt.Errorf("resolver %s: %w", server, err)
		}
		_ = c.SetReadDeadline(time.Now().Add(s.cfg.Limits.Try))
		for {
			n, err := c.Read(buf)
			var timeout net.Error
			switch {
			case errors.As(err, &timeout) && timeout.Timeout() && ctx.Err() == nil:
			case err != nil:
				return nil, fmt.Errorf("resolver %s: %w", server, errors.Join(ctx.Err(), err))
			case matches(asked, buf[:n]):
				copy(buf, q.raw[:2])
				return buf[:n], nil
			default:
				if wrong++; wrong >= strays {
					return nil, fmt.Errorf("resolver %s: %w", server, errStrays)
				}
				continue
			}
			break // ask again
		}
	}
}

// askTCP is one query on a connection of its own.
func (s *Server) askTCP(ctx context.Context, q *query, server netip.AddrPort) ([]byte, error) {
	c, done, err := s.dial(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	defer done()
	asked := fresh(q.raw)
	if _, err = c.Write(framed(asked)); err != nil {
		return nil, fmt.Errorf("resolver %s: %w", server, err)
	}
	reply, err := readMessage(c)
	switch {
	case err != nil:
		return nil, fmt.Errorf("resolver %s: %w", server, errors.Join(ctx.Err(), err))
	case !matches(asked, reply):
		return nil, fmt.Errorf("resolver %s: %w", server, errStrays)
	}
	copy(reply, q.raw[:2])
	return reply, nil
}

// framed is a message as TCP carries it.
func framed(m []byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(m)), uint16(len(m))), m...)
}

func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, m)
	return m, err
}
