package hbone

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/net/http2"
)

// drainPing is the payload of the PING that measures the round trip between the
// two GOAWAYs of a drain; keepalive PINGs count from 1.
var drainPing = [8]byte{0xff}

// stopped is how late a timer is at most while this process runs. Later, the machine or
// the process was held up, the answer may lie unread in the socket, and the peer is asked
// once more: it must not lose its streams for a pause of ours.
const stopped = 500 * time.Millisecond

// drainState is where a graceful end stands (RFC 9113 §6.8): warned, then, a
// round trip later, final. A peer that does not answer has as long as for any PING.
type drainState struct {
	started, final bool
	since          time.Time
}

func (d *drainState) start() { *d = drainState{started: true, since: time.Now()} }

// finishDrainLocked says that nothing new is taken from here on.
func (t *tunnel) finishDrainLocked() {
	t.drain.final = true
	t.h2.GoAway(true, http2.ErrCodeNo)
}

// greetedLocked notes the peer's first SETTINGS: keepalive begins.
func (t *tunnel) greetedLocked() {
	if !t.greeted {
		t.greeted = true
		t.timer.Reset(t.cfg.PingInterval)
	}
}

// tick is the tunnel's one timer. Before the peer's SETTINGS it is the
// handshake's deadline; afterwards it sends PINGs and misses their answers.
func (t *tunnel) tick() {
	t.mu.Lock()
	switch {
	case t.err != nil || t.closed:
		t.mu.Unlock()
		return
	case !t.greeted:
		t.failLocked(fmt.Errorf("no HTTP/2 settings from the peer: %w after %s", ErrTimeout, t.cfg.HandshakeTimeout))
		t.mu.Unlock()
		return
	}
	if d := &t.drain; d.started && !d.final && time.Since(d.since) >= t.cfg.PingTimeout {
		t.finishDrainLocked()
		t.changedLocked()
	}
	if !t.pinged.IsZero() {
		// Anything that comes shows that the peer is there: on a slow path its
		// answer may queue behind a lot of data.
		last := t.pinged
		if t.heard.After(last) {
			last = t.heard
		}
		switch left := t.cfg.PingTimeout - time.Since(last); {
		case left > 0:
			t.timer.Reset(left)
			t.kick()
			return
		case left > -stopped:
			t.failLocked(fmt.Errorf("no answer to PING: %w after %s", ErrTimeout, t.cfg.PingTimeout))
			t.mu.Unlock()
			return
		}
	}
	t.pinged = time.Now()
	t.h2.Ping(t.pingPayload())
	t.timer.Reset(min(t.cfg.PingInterval, t.cfg.PingTimeout))
	t.kick()
}

// pingPayload tells a PING from the one before it.
func (t *tunnel) pingPayload() (p [8]byte) {
	binary.BigEndian.PutUint64(p[:], uint64(t.pinged.Sub(t.start))>>1)
	return p
}

func (t *tunnel) pong(payload [8]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case payload == drainPing && t.drain.started && !t.drain.final:
		t.finishDrainLocked()
	case !t.pinged.IsZero() && payload == t.pingPayload():
		t.pinged = time.Time{}
	}
}

// startDrain begins the graceful end. Idle clients' tunnels need no warning:
// only they open streams.
func (t *tunnel) startDrain() {
	t.mu.Lock()
	if t.drain.started || t.err != nil {
		t.mu.Unlock()
		return
	}
	t.drain.start()
	t.h2.GoAway(false, http2.ErrCodeNo)
	t.h2.Ping(drainPing)
	t.changedLocked()
	t.kick()
}

// closeIdle ends a tunnel without streams; false: it has some.
func (t *tunnel) closeIdle() bool {
	t.mu.Lock()
	if t.h2.Streams() > 0 {
		t.mu.Unlock()
		return false
	}
	t.closing = true
	t.kick()
	return true
}
