// Package record protects a tunnel's bytes: it seals plaintext into TLS records
// and opens records, between buffers of the caller. It touches no socket but
// during the handshake, so that the owner of a tunnel decides when bytes move
// and how many records go into one write.
//
// [Handshake] runs crypto/tls on the real connection and returns a [Layer]. The
// one implementation so far is the stock one: the tls.Conn goes on, over a
// connection in memory that is empty until bytes are handed to it. It serves
// every version and cipher suite of crypto/tls, FIPS included. A second one,
// TLS 1.3 with AES-GCM in place of the record layer of crypto/tls, is to be
// chosen in Handshake as well; nothing above sees the difference.
//
// Pure apart from the handshake. Used by proxy/hbone only.
package record

import "crypto/tls"

// MaxPlain is the most plaintext that one record carries (RFC 8446 §5.1).
const MaxPlain = 16 << 10

// Overhead is the most that sealing adds to one record: header, explicit nonce
// (TLS 1.2), content type and tag.
const Overhead = 5 + 8 + 1 + 16

// SealedSize returns room enough for the records that carry n bytes.
func SealedSize(n int) int { return n + (n/MaxPlain+1)*Overhead }

// Layer is the record layer of one connection after its handshake. Seal and
// CloseWrite must not be called concurrently, nor must Open with itself; but
// sealing and opening may run at the same time.
type Layer interface {
	// Seal appends to dst the records that carry plain, in front of them what
	// the layer has to say itself (see Pending), and returns it. plain must
	// not overlap dst and may be empty.
	Seal(dst, plain []byte) ([]byte, error)
	// Open takes records, or parts of them, from src and appends the plaintext
	// to dst as long as dst has room for a whole record. It returns dst and how
	// much of src it took. When that is less than all there was no room: call
	// again. With all of src taken there may still be plaintext inside if dst
	// came back with less than MaxPlain of spare capacity: call again with an
	// empty src. io.EOF: the peer sent close_notify. Plaintext may come with
	// an error.
	Open(dst, src []byte) (plain []byte, n int, err error)
	// CloseWrite appends close_notify; Seal fails afterwards.
	CloseWrite(dst []byte) ([]byte, error)
	// Pending says that the layer wants to send something of its own, an alert
	// or a key update, which the next Seal will carry.
	Pending() bool
	// State describes the connection.
	State() tls.ConnectionState
}
