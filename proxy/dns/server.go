package dns

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Server answers one pod, on any number of sockets.
type Server struct {
	cfg   Config
	cache cache
	slots chan struct{} // of queries in flight
	conns chan struct{} // of TCP connections
	turn  chan struct{} // of those who answer beside the loops of packet sockets

	soft, hard  context.Context // no more queries; no more answers
	close, kill context.CancelFunc

	mu      sync.Mutex
	closed  bool
	sockets map[socket]struct{}
	work    sync.WaitGroup // loops, connections and queries in flight
}

// socket is one that Serve was called with, or a connection.
type socket interface {
	io.Closer
	SetReadDeadline(t time.Time) error
}

// New returns a Server for a pod.
func New(cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, cache: cache{limit: cfg.Limits.Kept},
		slots: make(chan struct{}, cfg.Limits.InFlight), conns: make(chan struct{}, cfg.Limits.Connections), turn: make(chan struct{}, 1),
		sockets: make(map[socket]struct{}),
	}
	s.soft, s.close = context.WithCancel(context.Background())
	s.hard, s.kill = context.WithCancel(context.Background())
	return s, nil
}

// Shutdown takes no more queries, lets those in flight be answered until ctx
// ends, and closes all sockets.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	s.closed = true
	s.close()
	for c := range s.sockets {
		_ = c.SetReadDeadline(s.lastRead(c)) // wakes the loop; answers can still be written
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() { s.work.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	s.kill()
	s.mu.Lock()
	for c := range s.sockets {
		_ = c.Close()
	}
	s.mu.Unlock()
	<-ended
}

// lastRead is when a socket has to stop reading: at once, but that queries which have
// come to a packet socket are still taken, now that no more come.
func (s *Server) lastRead(c socket) time.Time {
	packets, ok := c.(PacketConn)
	if !ok || s.cfg.Deafen == nil || s.cfg.Deafen(packets) != nil {
		return time.Unix(1, 0)
	}
	return time.Now().Add(leftovers)
}

// leftovers is how long packets that have come are read.
const leftovers = 50 * time.Millisecond

// Close ends everything now.
func (s *Server) Close() error {
	s.kill()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.Shutdown(ctx)
	return nil
}

// hold keeps a socket until the result is called, which closes it. It is false,
// and the socket closed, once the server is.
func (s *Server) hold(c socket) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close()
		return nil, false
	}
	s.sockets[c] = struct{}{}
	s.work.Add(1)
	return func() {
		_ = c.Close()
		s.mu.Lock()
		delete(s.sockets, c)
		s.mu.Unlock()
		s.work.Done()
	}, true
}

// task is a query that takes a while.
type task struct {
	q        query
	known    bool // the decision stands
	decision Decision
	asked    func() (netip.AddrPort, error) // nil: unknown
}

// begin answers a query that can be answered at once, in buf if it fits. A query
// that cannot is returned as a task; neither means silence.
func (s *Server) begin(raw []byte, t Transport, buf []byte) (reply []byte, _ *task) {
	q, err := parse(raw, t)
	switch {
	case err != nil:
		s.cfg.Metrics.Query(t, q.qtype, Malformed)
		return nil, nil
	case q.rcode == dns.RcodeFormatError:
		s.cfg.Metrics.Query(t, q.qtype, Malformed)
		return q.failure(q.rcode), nil
	case q.opcode != dns.OpcodeQuery || q.sealed || q.qtype != dns.TypeA && q.qtype != dns.TypeAAAA:
		return nil, &task{q: q, known: true}
	}
	d, ok := s.decide(&q)
	if ok && d.Verdict == Local {
		return s.local(&q, d, buf), nil
	}
	return nil, &task{q: q, known: ok, decision: d}
}

// inTurn runs f while none of the others does: whatever the number of its connections and of
// its queries in flight, a pod has one processor's worth of answers. A client that does not
// read its own keeps the next ones waiting for a moment only.
func (s *Server) inTurn(f func()) {
	s.turn <- struct{}{}
	next := time.AfterFunc(s.cfg.Limits.Turn, func() { <-s.turn })
	defer func() {
		if next.Stop() {
			<-s.turn
		}
	}()
	f()
}

func (s *Server) decide(q *query) (Decision, bool) {
	v, c, ok := s.cfg.Mesh.Look()
	if !ok {
		return Decision{}, false
	}
	return s.cfg.Zone.Resolve(v, c, q.name, q.qtype), true
}

// local answers from the mesh.
func (s *Server) local(q *query, d Decision, buf []byte) []byte {
	o := Answered
	if len(d.Addrs) == 0 {
		o = Empty
	}
	s.count(q, o, d, nil)
	if q.rcode != dns.RcodeSuccess {
		return q.failure(q.rcode)
	}
	return q.success(d, buf)
}

// finish answers a task; nil is silence.
func (s *Server) finish(ctx context.Context, t *task) []byte {
	q := &t.q
	for waited := false; !t.known; waited = true {
		s.inTurn(func() { t.decision, t.known = s.decide(q) })
		if t.known {
			break
		}
		if waited || !s.waitMesh(ctx) {
			s.count(q, Unknown, t.decision, nil)
			return q.failure(dns.RcodeServerFailure)
		}
	}
	local := func() (reply []byte) {
		s.inTurn(func() { reply = s.local(q, t.decision, nil) })
		return reply
	}
	if t.decision.Verdict == Local {
		return local()
	}
	servers, own := s.resolvers(t)
	if q.opcode != dns.OpcodeQuery && !own { // meant for one server, and we do not know which
		s.count(q, Failed, t.decision, nil)
		return q.failure(dns.RcodeNotImplemented)
	}
	reply, o, err := s.forward(ctx, q, servers)
	if t.decision.Verdict == Fallback && (err != nil || rcodeOf(reply) == dns.RcodeNameError || unable(reply)) {
		return local()
	}
	if err != nil {
		s.count(q, Failed, t.decision, err)
		return q.failure(dns.RcodeServerFailure)
	}
	s.count(q, o, t.decision, nil)
	return reply
}

// forward gets the resolvers' answer, be it one that is still known. The first one
// stands for all: whom they asked is what pods have in common, or not.
func (s *Server) forward(ctx context.Context, q *query, servers []netip.AddrPort) ([]byte, Outcome, error) {
	key := ""
	if len(servers) > 0 {
		key = q.key(servers[0])
	}
	if reply := s.cache.get(key, time.Now()); reply != nil {
		copy(reply, q.raw[:2])
		return shorten(reply, q.size), Cached, nil
	}
	start := time.Now()
	reply, err := s.exchange(ctx, q, servers)
	now := time.Now()
	s.cfg.Metrics.Upstream(q.transport, q.qtype, now.Sub(start), err != nil)
	if err == nil {
		s.cache.put(key, reply, now)
	}
	return reply, Forwarded, err
}

// waitMesh waits for the pod to be known, as long as a query may.
func (s *Server) waitMesh(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Limits.Mesh)
	defer cancel()
	for s.cfg.Mesh.Wait(ctx) == nil {
		if _, _, ok := s.cfg.Mesh.Look(); ok {
			return true
		}
	}
	return false
}

// resolvers are those to ask: the one that the pod asked, if that is known, and
// then it is the only one, for the pod has its own list.
func (s *Server) resolvers(t *task) (list []netip.AddrPort, own bool) {
	if t.asked != nil {
		// What is not for port 53 came here without being redirected, and would
		// come here again.
		if a, err := t.asked(); err == nil && a.IsValid() && a.Port() == port && !a.Addr().IsUnspecified() {
			return []netip.AddrPort{netip.AddrPortFrom(a.Addr().Unmap(), port)}, true
		}
	}
	list = s.cfg.Resolvers()
	return slices.Clone(list[:min(len(list), maxResolvers)]), false
}

// take reserves a place for a query in flight.
func (s *Server) take(t *task) bool {
	select {
	case s.slots <- struct{}{}:
		return true
	default:
		s.count(&t.q, Overloaded, t.decision, nil)
		return false
	}
}

func (s *Server) give() { <-s.slots }

// count is the end of a query.
func (s *Server) count(q *query, o Outcome, d Decision, err error) {
	s.cfg.Metrics.Query(q.transport, q.qtype, o)
	if !s.cfg.Log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{slog.String("query", TypeName(q.qtype)), slog.String("domain", q.name), slog.String("result", o.String())}
	if d.Service != nil {
		attrs = append(attrs, slog.String("service", d.Service.ResourceName()), slog.Int("endpoints", len(d.Addrs)))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	s.cfg.Log.LogAttrs(context.Background(), slog.LevelDebug, "dns query", attrs...)
}

// again pauses a loop whose socket failed, for want of descriptors or memory most
// likely. It is false when the loop has to end.
func (s *Server) again(err error, pause *time.Duration) bool {
	if s.soft.Err() != nil || errors.Is(err, net.ErrClosed) {
		return false
	}
	*pause = min(max(2**pause, 5*time.Millisecond), time.Second)
	s.cfg.Log.Warn("reading DNS queries failed, trying again", "err", err, "pause", *pause)
	t := time.NewTimer(*pause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.soft.Done():
		return false
	}
}
