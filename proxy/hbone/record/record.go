// Package record protects a tunnel's bytes: it seals plaintext into TLS records
// and opens records, between buffers of the caller. It touches no socket but
// during the handshake, so that the owner of a tunnel decides when bytes move
// and how many records go into one write.
//
// [Handshake] runs crypto/tls on the real connection and returns a [Layer], of
// which there are two. Ours protects TLS 1.3 with AES-GCM: it takes the traffic
// secrets from crypto/tls and seals and opens records by itself, between the
// caller's buffers and without an allocation for a record. The stock one lets
// the tls.Conn go on, over a connection in memory that is empty until bytes are
// handed to it; it serves every version and cipher suite of crypto/tls, and
// builds in FIPS mode. Nothing above sees the difference.
//
// Pure apart from the handshake. Used by proxy/hbone only.
package record

import "crypto/tls"

// MaxPlain is the most plaintext that one record carries (RFC 8446 §5.1).
const MaxPlain = 16 << 10

// Room is what Open needs for the plaintext of a record: the content type comes
// behind it (RFC 8446 §5.2).
const Room = MaxPlain + 1

// Overhead is the most that sealing adds to one record: header, explicit nonce
// (TLS 1.2), content type and tag.
const Overhead = 5 + 8 + 1 + 16

// SealedSize returns room enough for the records that carry n bytes.
func SealedSize(n int) int { return n + (n/MaxPlain+1)*Overhead }

// Choice says which Layer a handshake leads to.
type Choice uint8

const (
	// Own is ours wherever it applies: TLS 1.3 with AES-GCM, not in FIPS mode.
	Own Choice = iota
	// Stock is that of crypto/tls, always.
	Stock
)

// Layer is the record layer of one connection after its handshake. Seal and
// CloseWrite must not be called concurrently, nor must Open with itself; but
// sealing and opening may run at the same time.
type Layer interface {
	// Seal appends to dst the records that carry plain, in front of them what
	// the layer has to say itself (see Pending), and returns it. plain must
	// not overlap dst and may be empty; nobody else may use it meanwhile, nor the
	// byte behind it, if its capacity goes so far. After an error, what is in dst is still
	// to be sent: it may be the alert that says why.
	Seal(dst, plain []byte) ([]byte, error)
	// Open takes records, or parts of them, from src and appends the plaintext
	// to dst as long as dst has room for a whole record (Room). It returns dst
	// and how much of src it took. When that is less than all there was no
	// room: call again. With all of src taken there may still be plaintext
	// inside if dst came back with less than Room of spare capacity: call again
	// with an empty src. Beyond the returned length dst may hold anything.
	// io.EOF: the peer sent close_notify. Plaintext may come with an error.
	Open(dst, src []byte) (plain []byte, n int, err error)
	// CloseWrite appends close_notify; Seal fails afterwards.
	CloseWrite(dst []byte) ([]byte, error)
	// Pending says that the layer wants to send something of its own, an alert
	// or a key update, which the next Seal will carry.
	Pending() bool
	// State describes the connection.
	State() tls.ConnectionState
}
