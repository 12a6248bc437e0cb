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
	net.Conn           // for the addresses, and during the handshake
	measured *measured // if not nil, reads during the handshake go through it
	flights  int       // writes during the handshake
	detached bool      // set between handshake and first use, never concurrently

	// What Read gives, used by Open alone: what came behind the handshake, then
	// what Open was called with.
	early, src []byte

	mu  sync.Mutex // Open writes too: alerts and key updates
	out []byte
}

func (m *memConn) Read(p []byte) (int, error) {
	if !m.detached {
		if m.measured != nil {
			return m.measured.read(m.Conn, p)
		}
		return m.Conn.Read(p)
	}
	from := &m.src
	if len(m.early) > 0 {
		from = &m.early
	}
	if len(*from) == 0 {
		return 0, errEmpty{}
	}
	n := copy(p, *from)
	*from = (*from)[n:]
	return n, nil
}

func (m *memConn) Write(p []byte) (int, error) {
	if !m.detached {
		m.flights++
		return m.Conn.Write(p)
	}
	m.mu.Lock()
	m.out = append(m.out, p...)
	m.mu.Unlock()
	return len(p), nil
}

// detach leaves the real connection and returns what was read from it and not
// given out.
func (m *memConn) detach() (rest []byte) {
	if m.measured != nil {
		rest = m.measured.buf
	}
	m.measured, m.detached = nil, true
	return rest
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

// measuredSize is how much is read ahead during a handshake. It fits into what
// held keeps.
const measuredSize = 4 << 10

// measured reads a connection ahead but gives out no more than the rest of one
// record at a time. crypto/tls asks for what it lacks and takes all it gets: so
// it never has a byte of a record that is not its own.
type measured struct {
	buf    []byte // read, not given out
	header [headerSize]byte
	have   int // bytes of header given out
	left   int // bytes of the record's body to give out
}

func (m *measured) read(conn net.Conn, p []byte) (int, error) {
	if len(m.buf) == 0 {
		buf := make([]byte, measuredSize)
		n, err := conn.Read(buf)
		if n == 0 {
			return 0, err
		}
		m.buf = buf[:n] // an error comes again
	}
	if m.left > 0 {
		n := copy(p[:min(len(p), m.left)], m.buf)
		m.buf, m.left = m.buf[n:], m.left-n
		return n, nil
	}
	n := copy(m.header[m.have:], m.buf[:min(len(m.buf), len(p))])
	copy(p, m.header[m.have:m.have+n])
	m.buf, m.have = m.buf[n:], m.have+n
	if m.have == headerSize {
		m.have, m.left = 0, int(m.header[3])<<8|int(m.header[4])
	}
	return n, nil
}
