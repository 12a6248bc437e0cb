package client

import (
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// State of the line to the control plane.
type State string

// States. Connecting turns into Connected with the first response: only then is it
// known that the control plane takes us.
const (
	Idle       State = "idle" // Run has not been called, or has returned
	Connecting State = "connecting"
	Connected  State = "connected"
	Waiting    State = "waiting" // until the next attempt
)

// Status is what operators see of the line.
type Status struct {
	Address     string
	State       State
	Since       time.Time // of the state
	LastError   string    // the latest failure; kept when the line works again
	LastSuccess time.Time // when a response was last applied
}

// Reason is why a connection, or the attempt to make one, ended.
type Reason string

// Reasons, named as the metric's label values are.
const (
	ConnectionError Reason = "ConnectionError" // there never was a response
	Reconnect       Reason = "Reconnect"       // the line broke, or the control plane let go of it
	Failed          Reason = "Error"           // the control plane, or its words, were at fault
	Complete        Reason = "Complete"        // the control plane ended the stream without complaint
)

func reasonOf(answered bool, err error) Reason {
	if !answered {
		return ConnectionError
	}
	if errors.Is(err, io.EOF) {
		return Complete
	}
	s, ok := status.FromError(err)
	if !ok {
		return Failed
	}
	switch s.Code() {
	case codes.Unknown, codes.Canceled, codes.DeadlineExceeded:
		return Reconnect
	case codes.Unavailable:
		for _, text := range []string{"transport is closing", "closing transport", "prior goaway", "error reading from server", "shutting down"} {
			if strings.Contains(s.Message(), text) {
				return Reconnect
			}
		}
	}
	return Failed
}

// line is the status behind its lock.
type line struct {
	mu sync.Mutex
	s  Status
}

func (l *line) get() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.s
}

func (l *line) set(s State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.s.State != s {
		l.s.State, l.s.Since = s, time.Now()
	}
}

func (l *line) failed(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.s.LastError = clip(err.Error(), maxLastError)
}

func (l *line) succeeded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.s.LastSuccess = time.Now()
}

// maxLastError bounds what the peer can have shown.
const maxLastError = 1 << 10
