package h2

// Stream is one CONNECT stream. Its owner keeps the pointer and gives it back
// in calls; a stream that is over (Done) is forgotten by the connection and
// calls with it do nothing.
type Stream struct {
	// ID is the stream identifier on the wire.
	ID uint32
	// User is the owner's.
	User any

	recv recvWindow
	send int64 // credit to send, may be negative after a SETTINGS change (§6.9.2)

	prev, next *Stream // in the ring

	localEnd  bool  // we sent END_STREAM
	remoteEnd bool  // the peer did
	done      bool  // closed (§5.1), no longer in the connection's map
	answered  bool  // server: we answered; client: the final answer came
	update    bool  // in the connection's list of windows to return
	ready     bool  // the owner has something to send
	again     bool  // Ready was called since Next returned this stream
	queued    bool  // in the ring
	interim   uint8 // 1xx answers so far
}

// Done says whether the stream is closed in both directions.
func (s *Stream) Done() bool { return s.done }

// LocalEnded says whether we have ended our direction.
func (s *Stream) LocalEnded() bool { return s.localEnd || s.done }

// RemoteEnded says whether the peer has ended its direction.
func (s *Stream) RemoteEnded() bool { return s.remoteEnd || s.done }
