package h2

import "golang.org/x/net/http2"

// initialRecv is the window that streams begin with: as we announced it last, and as the
// peer has acknowledged.
type initialRecv struct {
	said, agreed int64
	pongs        int // since our last SETTINGS, while they are not acknowledged
}

// maxPongs is how many PINGs a peer may answer before it acknowledges our SETTINGS.
const maxPongs = 3

// wantedWindow is what streams should begin with, as memory is now.
func (c *Conn) wantedWindow() int64 {
	if c.cfg.Budget.tight() {
		return min(int64(c.cfg.InitialWindow), initialWindow)
	}
	return int64(c.cfg.InitialWindow)
}

// fit announces other windows when memory has run short, or is enough again: with one
// frame those of all streams change, and of those to come (§6.9.2). Until the peer
// has acknowledged that, what it was promised before holds.
func (c *Conn) fit() {
	want := c.wantedWindow()
	if want == c.initial.said || c.unacked > 0 || c.err != nil {
		return
	}
	c.initial.said, c.initial.pongs = want, 0
	c.appendSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(want)})
}

// agree applies to all streams what the peer has acknowledged.
func (c *Conn) agree() {
	delta := c.initial.said - c.initial.agreed
	c.initial.agreed = c.initial.said
	if delta == 0 {
		return
	}
	for _, s := range c.streams {
		s.recv.move(delta)
		c.Consumed(s, 0) // what it lacks now is due
	}
}

// ponged ends the connection of a peer that does as if it had not been told of smaller
// windows, or of anything: while SETTINGS are not acknowledged there are no others.
func (c *Conn) ponged() error {
	if c.unacked == 0 {
		return nil
	}
	if c.initial.pongs++; c.initial.pongs > maxPongs {
		return connError(http2.ErrCodeSettingsTimeout, "peer does not acknowledge SETTINGS")
	}
	return nil
}
