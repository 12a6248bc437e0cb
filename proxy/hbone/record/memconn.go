package record

import (
	"net"
	"sync"
	"time"
)

// errEmpty is what reading an empty memConn gives. It is a temporary net.Error:
// crypto/tls keeps what it has of a record and may be asked again.
type errEmpty struct{}

func (errEmpty) Error() string   { return "record: no bytes yet" }
func (errEmpty) Timeout() bool   { return true }
func (errEmpty) Temporary() bool { return true }

// memConn is the net.Conn under a tls.Conn. Until detach it passes everything
// on to the real connection; then it reads from src and writes to out.
type memConn struct {
	net.Conn      // for the addresses, and during the handshake
	detached bool // set between handshake and first use, never concurrently

	src []byte // what Read gives: used by Open alone

	mu  sync.Mutex // Open writes too: alerts and key updates
	out []byte
}

func (m *memConn) Read(p []byte) (int, error) {
	if !m.detached {
		return m.Conn.Read(p)
	}
	if len(m.src) == 0 {
		return 0, errEmpty{}
	}
	n := copy(p, m.src)
	m.src = m.src[n:]
	return n, nil
}

func (m *memConn) Write(p []byte) (int, error) {
	if !m.detached {
		return m.Conn.Write(p)
	}
	m.mu.Lock()
	m.out = append(m.out, p...)
	m.mu.Unlock()
	return len(p), nil
}

// begin makes dst the place that writes go to, after what was pending.
func (m *memConn) begin(dst []byte) {
	m.mu.Lock()
	m.out = append(dst, m.out...)
	m.mu.Unlock()
}

// end takes back what begin gave, with what was written.
func (m *memConn) end() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.out
	m.out = nil
	return out
}

func (m *memConn) pending() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.out) > 0
}

// Close and the deadlines are no business of the record layer: the owner of the
// socket closes it and sets its deadlines.
func (m *memConn) Close() error { return nil }

func (m *memConn) SetDeadline(time.Time) error      { return nil }
func (m *memConn) SetReadDeadline(time.Time) error  { return nil }
func (m *memConn) SetWriteDeadline(time.Time) error { return nil }
