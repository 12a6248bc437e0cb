package dns

import (
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// PacketConn is a *net.UDPConn. It should be bound to a loopback address: what is
// redirected inside a pod arrives there, and the kernel takes the answer for one
// only if it comes from there.
type PacketConn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, addr netip.AddrPort) (int, error)
	LocalAddr() net.Addr
	SetReadDeadline(t time.Time) error
	Close() error
}

// ServePacket answers what comes to c, which it takes over, until the server or c
// is closed. What the mesh knows is answered in this goroutine: a pod that floods
// its socket has one processor's worth of answers.
func (s *Server) ServePacket(c PacketConn) {
	release, ok := s.hold(c)
	if !ok {
		return
	}
	defer release()
	local, _ := netip.ParseAddrPort(c.LocalAddr().String())
	in, out := make([]byte, maxQuery+1), make([]byte, usualUDP)
	var pending sync.WaitGroup
	defer pending.Wait() // before the socket goes
	var pause time.Duration
	for {
		n, client, err := c.ReadFromUDPAddrPort(in)
		if err != nil {
			if s.again(err, &pause) {
				continue
			}
			return
		}
		pause = 0
		reply, t := s.begin(in[:n], UDP, out)
		if t != nil {
			if !s.take(t) {
				reply = t.q.failure(dns.RcodeServerFailure)
			} else {
				s.later(c, client, local, t, &pending)
			}
		}
		if reply != nil {
			_, _ = c.WriteToUDPAddrPort(reply, client) // a client that is gone needs none
		}
		runtime.Gosched() // or a client that asks fast enough has the thread
	}
}

// later answers a task in a goroutine of its own.
func (s *Server) later(c PacketConn, client, local netip.AddrPort, t *task, pending *sync.WaitGroup) {
	t.q.raw = slices.Clone(t.q.raw)
	if s.cfg.AskedUDP != nil {
		t.asked = func() (netip.AddrPort, error) { return s.cfg.AskedUDP(client, local) }
	}
	pending.Go(func() {
		defer s.give()
		if reply := s.finish(s.hard, t); reply != nil {
			_, _ = c.WriteToUDPAddrPort(reply, client)
		}
	})
}
