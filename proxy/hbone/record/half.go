package record

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"hash"
	"slices"
)

const (
	headerSize = 5
	tagSize    = 16
	// maxSealed is the longest body of a record that we take. RFC 8446 §5.2
	// gives room for 256 bytes more than the plaintext, but §5.4 limits content,
	// type and padding together, and GCM adds its tag only.
	maxSealed = MaxPlain + 1 + tagSize
)

// Content types (RFC 8446 §5.1).
const (
	typeChangeCipherSpec = 20
	typeAlert            = 21
	typeHandshake        = 22
	typeData             = 23
)

// suite is a cipher suite of TLS 1.3 with AES-GCM.
type suite struct {
	hash func() hash.Hash
	// Lengths in bytes: a traffic secret is as long as the hash.
	key, secret int
}

// suiteOf returns the suite by its number; false: ours does not do it.
func suiteOf(id uint16) (suite, bool) {
	switch id {
	case tls.TLS_AES_128_GCM_SHA256:
		return suite{hash: sha256.New, key: 16, secret: sha256.Size}, true
	case tls.TLS_AES_256_GCM_SHA384:
		return suite{hash: sha512.New384, key: 32, secret: sha512.Size384}, true
	}
	return suite{}, false
}

// expand is HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
func (s suite) expand(secret []byte, label string, n int) ([]byte, error) {
	label = "tls13 " + label
	info := string([]byte{byte(n >> 8), byte(n), byte(len(label))}) + label + "\x00"
	return hkdf.Expand(s.hash, secret, info, n)
}

// half protects one direction of a connection.
type half struct {
	suite  suite
	secret []byte // the traffic secret; the next one is made of it
	aead   cipher.AEAD
	iv     [12]byte
	nonce  [12]byte // scratch, so that no record allocates one
	seq    uint64   // of the next record under this key
}

// use begins a key: secret, which belongs to the half from now on, replaces the
// one before, and records count from zero (RFC 8446 §7.3, §5.3).
func (h *half) use(secret []byte) error {
	key, err := h.suite.expand(secret, "key", h.suite.key)
	if err != nil {
		return err
	}
	defer clear(key)
	iv, err := h.suite.expand(secret, "iv", len(h.iv))
	if err != nil {
		return err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	clear(h.secret)
	copy(h.iv[:], iv)
	clear(iv)
	h.secret, h.aead, h.seq = secret, aead, 0
	return nil
}

// update moves on to the next key (RFC 8446 §7.2).
func (h *half) update() error {
	next, err := h.suite.expand(h.secret, "traffic upd", h.suite.secret)
	if err != nil {
		return err
	}
	return h.use(next)
}

// forget gives up the keys: nothing is sealed or opened any more. What is
// inside the cipher cannot be overwritten from here; it is garbage now.
func (h *half) forget() {
	clear(h.secret)
	clear(h.iv[:])
	clear(h.nonce[:])
	h.secret, h.aead = nil, nil
}

// nextNonce returns the nonce of the next record: no two under one key are
// equal, because the number never goes back and cannot wrap within a key's life.
func (h *half) nextNonce() []byte {
	h.nonce = h.iv
	low := h.nonce[4:]
	binary.BigEndian.PutUint64(low, binary.BigEndian.Uint64(low)^h.seq)
	h.seq++
	return h.nonce[:]
}

// seal appends one record to dst. What it encrypts is the content with its type
// behind it: where plain has room for that, it is read where it is, and what lay
// there is put back; else a copy is made.
func (h *half) seal(dst []byte, typ byte, plain []byte) []byte {
	n := len(plain) + 1 + tagSize
	dst = slices.Grow(dst, headerSize+n)
	header := dst[len(dst) : len(dst)+headerSize]
	copy(header, []byte{typeData, 3, 3, byte(n >> 8), byte(n)})
	dst = dst[:len(dst)+headerSize]
	body := dst[len(dst):]
	if cap(plain) == len(plain) {
		body = append(append(body, plain...), typ)
		h.aead.Seal(body[:0], h.nextNonce(), body, header)
		return dst[:len(dst)+n]
	}
	inner := plain[:len(plain)+1]
	next := inner[len(plain)]
	inner[len(plain)] = typ
	h.aead.Seal(body, h.nextNonce(), inner, header)
	inner[len(plain)] = next
	return dst[:len(dst)+n]
}

// open decrypts a whole record into the spare capacity of dst, at least Room. It
// returns the content and its type; dst's length does not change.
func (h *half) open(dst, record []byte) (content []byte, typ byte, err error) {
	inner, err := h.aead.Open(dst[len(dst):], h.nextNonce(), record[headerSize:], record[:headerSize])
	if err != nil {
		return nil, 0, errMAC
	}
	for n := len(inner) - 1; n >= 0; n-- { // behind the type is padding, zeros
		if inner[n] != 0 {
			return inner[:n], inner[n], nil
		}
	}
	return nil, 0, errNoType
}

// recordSize checks a record's header, at least headerSize long, and returns
// the size of the whole record. All that comes after the handshake is protected
// and looks like application data (RFC 8446 §5.2); change_cipher_spec is
// allowed before the peer's Finished only (§5).
func recordSize(header []byte) (int, error) {
	if header[1] != 3 || header[2] != 3 {
		return 0, errVersion
	}
	if header[0] != typeData {
		return 0, errOuterType
	}
	n := int(header[3])<<8 | int(header[4])
	if n > maxSealed {
		return 0, errTooLong
	}
	return headerSize + n, nil
}
