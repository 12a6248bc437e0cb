package h2

import (
	"encoding/binary"
	"maps"
	"slices"

	"golang.org/x/net/http2"
)

const (
	// settingLen is the size of one setting (§6.5.1).
	settingLen = 6
	// maxSettings is how many a frame may have, of which some cost work for each stream
	// (CVE-2020-11080). RFC 9113 knows six.
	maxSettings = 32
)

func (c *Conn) beginSettings() error {
	f := c.in.f
	switch {
	case f.id != 0:
		return connError(http2.ErrCodeProtocol, "SETTINGS on a stream")
	case f.has(http2.FlagSettingsAck) && f.length != 0, f.length%settingLen != 0:
		return connError(http2.ErrCodeFrameSize, "SETTINGS of wrong size")
	case f.length > maxSettings*settingLen:
		return connError(http2.ErrCodeEnhanceYourCalm, "too many settings in one frame")
	}
	return c.takeControl()
}

func (c *Conn) endSettings() error {
	if c.in.f.has(http2.FlagSettingsAck) {
		if c.unacked == 0 {
			return connError(http2.ErrCodeProtocol, "acknowledgement of SETTINGS we did not send")
		}
		c.unacked--
		c.agree()
		return nil
	}
	for b := c.in.buf; len(b) > 0; b = b[settingLen:] {
		id, val := http2.SettingID(binary.BigEndian.Uint16(b)), binary.BigEndian.Uint32(b[2:])
		if err := c.applySetting(id, val); err != nil {
			return err
		}
	}
	c.gotSettings = true
	c.appendFrame(http2.FrameSettings, http2.FlagSettingsAck, 0, nil)
	c.emit(Event{Kind: Settings})
	return nil
}

// applySetting takes one setting of the peer (§6.5.2). Unknown ones are ignored.
func (c *Conn) applySetting(id http2.SettingID, val uint32) error {
	switch id {
	case http2.SettingHeaderTableSize:
		// Our table stays small whatever the peer would allow.
		c.enc.SetMaxDynamicTableSize(min(val, tableSize))
	case http2.SettingEnablePush:
		if val > 1 || (val == 1 && c.client) {
			return connError(http2.ErrCodeProtocol, "invalid SETTINGS_ENABLE_PUSH")
		}
	case http2.SettingMaxConcurrentStreams:
		c.peer.maxStreams = val
	case http2.SettingInitialWindowSize:
		if val > maxWindow {
			return connError(http2.ErrCodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE too large")
		}
		return c.moveWindows(int64(val) - c.peer.initialWindow)
	case http2.SettingMaxFrameSize:
		if val < minMaxFrame || val > maxMaxFrame {
			return connError(http2.ErrCodeProtocol, "invalid SETTINGS_MAX_FRAME_SIZE")
		}
		c.peer.maxFrame = int(val)
	case http2.SettingMaxHeaderListSize:
		c.peer.maxHeaderList = val
	}
	return nil
}

// moveWindows applies a change of the initial window to every stream (§6.9.2). It may
// leave one that waits for its turn without credit, even with less than none.
func (c *Conn) moveWindows(delta int64) error {
	c.peer.initialWindow += delta
	for _, s := range c.streams {
		s.send += delta
		if s.send > maxWindow {
			return connError(http2.ErrCodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE overflows a window")
		}
		if s.send <= 0 {
			c.sched.remove(s)
		} else {
			c.schedule(s)
		}
	}
	return nil
}

// maxPendingAcks is how many answers to PING and SETTINGS may wait for a peer
// that does not read (CVE-2019-9512, CVE-2019-9515).
const maxPendingAcks = 100

func (c *Conn) onPing() error {
	var e Event
	copy(e.Ping[:], c.in.buf)
	if c.in.f.has(http2.FlagPingAck) {
		e.Kind = Pong
		c.emit(e)
		if err := c.ponged(); err != nil {
			return err
		}
		return c.takeControl()
	}
	c.appendFrame(http2.FramePing, http2.FlagPingAck, 0, e.Ping[:])
	return c.takeControl()
}

func (c *Conn) onGoAway() error {
	last := binary.BigEndian.Uint32(c.in.buf) & streamMask
	code := http2.ErrCode(binary.BigEndian.Uint32(c.in.buf[4:]))
	if c.peerGone && last > c.peerLast {
		return connError(http2.ErrCodeProtocol, "GOAWAY raises its last stream")
	}
	c.peerGone, c.peerLast = true, last
	if c.client {
		for _, id := range slices.Sorted(maps.Keys(c.streams)) {
			if s := c.streams[id]; id > last { // §6.8: not and never processed
				c.forget(s)
				c.emit(Event{Kind: Reset, Stream: s, Code: http2.ErrCodeRefusedStream, Unprocessed: true})
			}
		}
	}
	c.emit(Event{Kind: GoAway, Code: code})
	return c.takeControl()
}

func (c *Conn) onReset() error {
	id := c.in.f.id
	s, idle := c.lookup(id)
	if idle {
		return connError(http2.ErrCodeProtocol, "RST_STREAM on an idle stream")
	}
	if s == nil {
		if !c.limits.strays.take(c.now) {
			return connError(http2.ErrCodeEnhanceYourCalm, "flood of resets of closed streams")
		}
		return nil
	}
	if !c.client && !s.answered && !c.limits.early.take(c.now) {
		return connError(http2.ErrCodeEnhanceYourCalm, "flood of requests taken back")
	}
	code := http2.ErrCode(binary.BigEndian.Uint32(c.in.buf))
	c.forget(s)
	// §8.7: REFUSED_STREAM promises that nothing was done.
	refused := c.client && code == http2.ErrCodeRefusedStream && !s.answered
	c.emit(Event{Kind: Reset, Stream: s, Code: code, Unprocessed: refused, Ended: s.remoteEnd})
	return nil
}

func (c *Conn) onWindowUpdate() error {
	id := c.in.f.id
	n := int64(binary.BigEndian.Uint32(c.in.buf) & streamMask)
	if !c.limits.updates.take(c.now) {
		return connError(http2.ErrCodeEnhanceYourCalm, "flood of window updates")
	}
	if id == 0 {
		if n == 0 {
			return connError(http2.ErrCodeProtocol, "WINDOW_UPDATE of nothing")
		}
		if c.send += n; c.send > maxWindow {
			return connError(http2.ErrCodeFlowControl, "connection window overflow")
		}
		return nil
	}
	s, idle := c.lookup(id)
	switch {
	case idle:
		return connError(http2.ErrCodeProtocol, "WINDOW_UPDATE on an idle stream")
	case s == nil: // §5.1: may come for a while after the end
		return nil
	case n == 0:
		return &streamError{id, http2.ErrCodeProtocol}
	case s.send+n > maxWindow:
		return &streamError{id, http2.ErrCodeFlowControl}
	}
	s.send += n
	c.schedule(s)
	return nil
}
