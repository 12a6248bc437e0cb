package hbone

import (
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone/h2"
	"github.com/warren-mesh/warren/proxy/hbone/record"
	"github.com/warren-mesh/warren/proxy/ready"
)

// Config tunes tunnels in both roles. The zero value is usable: each zero
// field takes its default.
type Config struct {
	// StreamWindow is what a stream's receive window may grow to, in bytes;
	// streams start at InitialWindow. Defaults 4 MiB and 256 KiB.
	StreamWindow, InitialWindow uint32
	// ConnWindow is the receive window of a whole tunnel, in bytes. Default 16 MiB.
	ConnWindow uint32
	// MaxFrame is the largest frame payload we accept, in bytes (16 KiB to
	// 16 MiB). Default 1 MiB.
	MaxFrame uint32
	// MaxStreams is the number of streams at a time that a peer may open on
	// one tunnel to us. Default 200.
	MaxStreams uint32
	// PoolStreams is the number of streams at a time that a Pool puts on one
	// tunnel, or the peer's own limit when lower. Default 100.
	PoolStreams int
	// IdleRelease is how long a Pool keeps a tunnel without streams. Default 5 m.
	IdleRelease time.Duration
	// HandshakeTimeout bounds how long the peer is waited for, in TLS and for its
	// first SETTINGS together. Our own waiting at the Gate is not in it; where we
	// are the client, what the peer may wait at its own comes to it. Default 10 s.
	HandshakeTimeout time.Duration
	// ResponseTimeout bounds the wait for the answer to a CONNECT. Default 20 s:
	// a peer may spend 15 s on finding the workload and dialing it.
	ResponseTimeout time.Duration
	// A PING goes out every PingInterval; a tunnel whose peer has not answered
	// within PingTimeout is dropped. Defaults 10 s and 20 s.
	PingInterval, PingTimeout time.Duration
	// Until says when a tunnel of a Pool takes no more streams, because a
	// certificate ends; it is asked once, after the handshake. Streams that are
	// open go on. Nil, or the zero time: never.
	Until func(Key, tls.ConnectionState) time.Time
	// Budget caps the sum of what windows have grown by, over all tunnels that
	// share it. Nil: no cap.
	Budget *Budget
	// Gate bounds handshakes, over all tunnels that share it; they take turns as
	// Owner's. Nil: no bound.
	Gate  *Gate
	Owner string
	// Ready has the loops that wait for the tunnels' sockets. Nil: each tunnel has
	// a loop of its own, which costs it a thread.
	Ready *ready.Set
	// Records chooses the TLS record layer. Default OwnRecords.
	Records Records
	// Log takes what has no caller to return to; nil discards it.
	Log *slog.Logger
}

// Records is a choice of TLS record layer.
type Records = record.Choice

// The record layers: ours wherever it applies, or that of crypto/tls always.
const (
	OwnRecords   = record.Own
	StockRecords = record.Stock
)

// Budget is a cap in bytes, shared by tunnels.
type Budget = h2.Budget

// NewBudget returns a budget of n bytes.
func NewBudget(n int64) *Budget { return h2.NewBudget(n) }

// or returns v, or def when v is zero.
func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func (c Config) withDefaults() Config {
	c.StreamWindow = or(c.StreamWindow, 4<<20)
	c.InitialWindow = min(or(c.InitialWindow, 256<<10), c.StreamWindow)
	c.ConnWindow = or(c.ConnWindow, 16<<20)
	c.MaxFrame = or(c.MaxFrame, 1<<20)
	c.MaxStreams = or(c.MaxStreams, 200)
	c.PoolStreams = or(c.PoolStreams, 100)
	c.IdleRelease = or(c.IdleRelease, 5*time.Minute)
	c.HandshakeTimeout = or(c.HandshakeTimeout, 10*time.Second)
	c.ResponseTimeout = or(c.ResponseTimeout, 20*time.Second)
	c.PingInterval = or(c.PingInterval, 10*time.Second)
	c.PingTimeout = or(c.PingTimeout, 20*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
