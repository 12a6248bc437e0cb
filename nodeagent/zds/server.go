package zds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"
)

// Predicates for callers of Server.Add: in both cases the proxy has not been
// told of the pod.
var (
	ErrNoProxy = errors.New("no proxy is connected to the node agent")
	ErrBusy    = errors.New("the proxy has not come to it in time")
)

// errStopped ends what waits when the server stops.
var errStopped = errors.New("zds: the server has stopped")

// maxSessions bounds the connections: a proxy, its successor, and room for
// those that have died without our having noticed.
const maxSessions = 16

// Server is the node agent's end.
type Server struct {
	path     string
	snapshot func() []Workload
	log      *slog.Logger
	timeout  time.Duration // for hello and acks: ackTimeout, less in tests

	mu       sync.Mutex
	stopped  bool
	sessions []*session // oldest first
	waiting  []*op      // Adds that no session can take yet
	lastErr  error      // why the last session ended
}

// NewServer makes a server that will listen at path. snapshot returns every pod
// that the proxy is to serve, also those that Add is being called for; a
// Workload without NS becomes a Keep. The namespaces stay the caller's; one
// that is closed meanwhile is skipped. snapshot is called from goroutines of the
// server, which holds no lock then.
func NewServer(path string, snapshot func() []Workload, log *slog.Logger) *Server {
	return &Server{path: path, snapshot: snapshot, log: log, timeout: ackTimeout}
}

// Run serves until ctx ends; then it returns nil. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	l, err := Listen(network, s.path)
	if err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

// Serve is Run on a socket that is there already. It takes ownership of l.
func (s *Server) Serve(ctx context.Context, l *Listener) error {
	defer s.stop()
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the sessions that wg waits for
	defer context.AfterFunc(ctx, func() { l.Close() })()
	wait := time.Duration(0)
	for {
		c, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("zds: accept: %w", err)
		case err != nil:
			// Out of descriptors, most likely: they come back.
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			s.log.Warn("cannot accept a proxy's connection", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			continue
		}
		wait = 0
		if x := s.admit(c); x != nil {
			wg.Go(func() { x.run(ctx) })
		}
	}
}

// admit makes a session of a connection, or closes it.
func (s *Server) admit(c *net.UnixConn) *session {
	err := rootPeer(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && len(s.sessions) >= maxSessions {
		err = fmt.Errorf("%d connections already", maxSessions)
	}
	if err != nil {
		c.Close()
		s.log.Warn("refused a connection to the proxy's socket", "err", err)
		return nil
	}
	x := newSession(s, c)
	s.sessions = append(s.sessions, x)
	return x
}

// stop fails what still waits.
func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for _, o := range s.waiting {
		o.finishLocked(errStopped)
	}
	s.waiting = nil
}

// Add hands a pod to the newest proxy that is through its snapshot and waits
// for its ack. Without a proxy it waits for one. When ctx ends first the Add is
// withdrawn, with ErrNoProxy or ErrBusy, unless it has been sent already: then
// the proxy may serve the pod although Add has failed, and a Del is called for.
// An error text in the ack is an [AckError]. w.NS stays the caller's.
func (s *Server) Add(ctx context.Context, w Workload) error {
	o, err := newAdd(w)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.stopped {
		o.finishLocked(errStopped)
	} else {
		s.assignLocked(o)
	}
	s.mu.Unlock()
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		return s.withdraw(ctx, o)
	}
}

// assignLocked gives an Add to the newest session that is ready.
func (s *Server) assignLocked(o *op) {
	if x := s.newestLocked(); x != nil {
		x.queue = append(x.queue, o)
		x.wakeUp()
		return
	}
	s.waiting = append(s.waiting, o)
}

func (s *Server) newestLocked() *session {
	for _, x := range slices.Backward(s.sessions) {
		if x.ready {
			return x
		}
	}
	return nil
}

// withdraw takes back an Add whose caller waits no longer.
func (s *Server) withdraw(ctx context.Context, o *op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.finished() {
		return o.err
	}
	if o.started {
		return fmt.Errorf("zds: add uid %s: sent to the proxy, but no ack yet: %w", o.req.uid, context.Cause(ctx))
	}
	same := func(other *op) bool { return other == o }
	reason := ErrBusy
	if len(s.sessions) == 0 {
		reason = ErrNoProxy
	}
	s.waiting = slices.DeleteFunc(s.waiting, same)
	for _, x := range s.sessions {
		x.queue = slices.DeleteFunc(x.queue, same)
	}
	o.finishLocked(fmt.Errorf("zds: add uid %s: %w", o.req.uid, reason))
	return o.err
}

// Del tells every proxy that a pod is gone and waits for their acks. A proxy
// that disconnects meanwhile counts as told: its next snapshot tells it. When
// ctx ends first the messages are still sent.
func (s *Server) Del(ctx context.Context, uid string) error {
	s.mu.Lock()
	var ops []*op
	for _, x := range s.sessions {
		o, err := newDel(uid)
		if err != nil {
			s.mu.Unlock()
			return err
		}
		ops = append(ops, o)
		x.queue = append(x.queue, o)
		x.wakeUp()
	}
	s.mu.Unlock()
	var errs []error
	for _, o := range ops {
		select {
		case <-o.done:
			errs = append(errs, o.err)
		case <-ctx.Done():
			return errors.Join(append(errs, fmt.Errorf("zds: del uid %s: not acked by every proxy yet: %w", uid, context.Cause(ctx)))...)
		}
	}
	return errors.Join(errs...)
}

// Connected is how many proxies are connected and through their snapshot.
func (s *Server) Connected() int { return s.State().Ready }

// State is what there is to say about the proxies.
type State struct {
	Connections int       // all of them
	Ready       int       // those through their snapshot
	Since       time.Time // when the newest one became ready; zero without one
	LastError   string    // why the last connection ended
}

// State describes the connections.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := State{Connections: len(s.sessions)}
	for _, x := range s.sessions {
		if x.ready {
			st.Ready++
			st.Since = x.since
		}
	}
	if s.lastErr != nil {
		st.LastError = s.lastErr.Error()
	}
	return st
}
