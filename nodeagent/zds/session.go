package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
)

// session is one proxy's connection. One goroutine (run) speaks, another
// (listen) hears, so that bytes that nobody asked for are noticed when they
// come.
type session struct {
	server *Server
	conn   conn

	// Guarded by server.mu.
	ready   bool // hello and snapshot are done: it takes Adds
	since   time.Time
	behind  bool // it may lack pods that another session was told of
	queue   []*op
	wake    chan struct{} // capacity 1
	current *op           // the op in flight

	sent map[string]netns.ID // what this proxy serves; run's own

	expecting atomic.Bool   // a packet from the proxy is due
	heard     chan []byte   // capacity 1
	broken    chan struct{} // closed when listen has ended
	err       error         // why; valid once broken is closed
}

func newSession(s *Server, c *net.UnixConn) *session {
	x := &session{
		server: s, conn: conn{UnixConn: c},
		wake: make(chan struct{}, 1), sent: make(map[string]netns.ID),
		heard: make(chan []byte, 1), broken: make(chan struct{}),
	}
	x.expecting.Store(true) // the hello
	return x
}

// run speaks with the proxy until one of them ends it.
func (x *session) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(x.listen)
	stop := context.AfterFunc(ctx, func() { x.conn.Close() })
	err := x.converse(ctx)
	stop()
	x.conn.Close()
	wg.Wait()
	if ctx.Err() != nil {
		err = errStopped
	} else {
		x.server.log.Warn("a proxy's connection ended", "err", err)
	}
	x.server.remove(x, err)
}

// listen receives until the connection ends.
func (x *session) listen() {
	defer close(x.broken)
	for {
		b, files, err := x.conn.receive()
		closeAll(files)
		switch {
		case errors.Is(err, io.EOF):
			x.err = errors.New("the proxy closed the connection")
		case err != nil:
			x.err = err
		case len(files) > 0:
			x.err = errors.New("the proxy sent a file descriptor")
		case !x.expecting.CompareAndSwap(true, false):
			x.err = errors.New("the proxy sent what nobody asked for")
		default:
			x.heard <- slices.Clone(b) // there is room: one packet for one expectation
			continue
		}
		return
	}
}

// answer waits for the packet that is due.
func (x *session) answer(what string) ([]byte, error) {
	timer := time.NewTimer(x.server.timeout)
	defer timer.Stop()
	select {
	case b := <-x.heard:
		return b, nil
	case <-x.broken:
		select {
		case b := <-x.heard: // it came before the end
			return b, nil
		default:
			return nil, x.err
		}
	case <-timer.C:
		// An answer after this would be taken for that to the next message.
		return nil, fmt.Errorf("no answer to %s within %s", what, x.server.timeout)
	}
}

// exchange sends one message and returns the text of its ack. An error is the
// end of the connection.
func (x *session) exchange(req request, packet []byte, ns *netns.NS) (text string, err error) {
	x.expecting.Store(true)
	if err := x.conn.send(packet, ns); err != nil {
		return "", fmt.Errorf("send %s: %w", req.kind, err)
	}
	b, err := x.answer(req.kind.String())
	if err != nil {
		return "", err
	}
	return decodeAck(b)
}

func (x *session) converse(ctx context.Context) error {
	b, err := x.answer("the connection (a hello)")
	if err != nil {
		return err
	}
	if err := decodeHello(b); err != nil {
		return err
	}
	if err := x.sendPods(x.server.snapshot(), true); err != nil {
		return err
	}
	done := request{kind: kindSnapshot}
	packet, err := done.encode()
	if err != nil {
		return err
	}
	text, err := x.exchange(done, packet, nil)
	if err != nil {
		return err
	}
	if text != "" {
		return fmt.Errorf("the proxy refused the snapshot: %q", text)
	}
	x.server.setReady(x)
	x.server.log.Info("a proxy is connected", "pods", len(x.sent))
	for {
		if err := x.next(ctx); err != nil {
			return err
		}
	}
}

// next does what is to be done next, or waits for it.
func (x *session) next(ctx context.Context) error {
	s := x.server
	s.mu.Lock()
	switch {
	case x.behind:
		x.behind = false
		s.mu.Unlock()
		return x.sendPods(s.snapshot(), false)
	case len(x.queue) > 0:
		o := x.queue[0]
		x.queue = x.queue[1:]
		x.current, o.started = o, true
		s.mu.Unlock()
		return x.do(o)
	}
	s.mu.Unlock()
	select {
	case <-x.wake:
		return nil
	case <-x.broken:
		return x.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// do carries out an op.
func (x *session) do(o *op) error {
	text, err := x.exchange(o.req, o.packet, o.ns)
	if err != nil {
		return err // remove finishes the op
	}
	var result error
	switch {
	case text != "":
		result = &AckError{UID: o.req.uid, Text: text}
	case o.req.kind == kindAdd:
		x.sent[o.req.uid] = o.ns.ID()
	}
	if o.req.kind == kindDel {
		delete(x.sent, o.req.uid)
	}
	x.server.mu.Lock()
	defer x.server.mu.Unlock()
	x.current = nil
	o.finishLocked(result)
	return nil
}

// sendPods tells the proxy of pods that it does not have yet, in the snapshot
// or after it. The proxy's refusal of one pod does not keep it from the others:
// it tries again itself.
func (x *session) sendPods(pods []Workload, snapshot bool) error {
	for _, w := range pods {
		if w.NS == nil && !snapshot || w.NS != nil && x.sent[w.UID] == w.NS.ID() {
			continue
		}
		if err := x.sendPod(w); err != nil {
			return err
		}
	}
	return nil
}

func (x *session) sendPod(w Workload) error {
	req := request{kind: kindKeep, uid: w.UID}
	var ns *netns.NS
	if w.NS != nil {
		req = request{kind: kindAdd, uid: w.UID, info: w.Info}
		var err error
		if ns, err = w.NS.Dup(); err != nil {
			return nil // the pod has just gone
		}
		defer ns.Close()
	}
	packet, err := req.encode()
	if err != nil {
		x.server.log.Error("left a pod out of the snapshot", "uid", w.UID, "err", err)
		return nil
	}
	text, err := x.exchange(req, packet, ns)
	if err != nil {
		return err
	}
	if text != "" {
		x.server.log.Warn("the proxy cannot serve a pod yet", "pod", w.Info.Namespace+"/"+w.Info.Name, "uid", w.UID, "err", text)
		return nil
	}
	if ns != nil {
		x.sent[w.UID] = ns.ID()
	}
	return nil
}

func (x *session) wakeUp() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// setReady lets a session take Adds. Those that went to others since its
// snapshot was taken it catches up on first.
func (s *Server) setReady(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.ready, x.since, x.behind = true, time.Now(), true
	if s.newestLocked() == x {
		x.queue = append(x.queue, s.waiting...)
		s.waiting = nil
	}
}

// remove forgets a session that has ended. What it had not begun goes to the
// newest one left, which may lack pods that only this one was told of.
func (s *Server) remove(x *session, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastErr = err
	s.sessions = slices.DeleteFunc(s.sessions, func(o *session) bool { return o == x })
	if o := x.current; o != nil {
		if o.req.kind == kindDel {
			o.finishLocked(nil)
		} else {
			o.finishLocked(fmt.Errorf("zds: add uid %s: the connection ended before the ack: %w", o.req.uid, err))
		}
	}
	if n := s.newestLocked(); n != nil {
		n.behind = true
		n.wakeUp()
	}
	for _, o := range x.queue {
		switch {
		case o.req.kind == kindDel:
			o.finishLocked(nil)
		case s.stopped || errors.Is(err, errStopped):
			o.finishLocked(errStopped)
		default:
			s.assignLocked(o)
		}
	}
	x.queue = nil
}
