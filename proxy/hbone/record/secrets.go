package record

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// The lines of a key log that carry the first application traffic secrets.
const (
	labelClient = "CLIENT_TRAFFIC_SECRET_0"
	labelServer = "SERVER_TRAFFIC_SECRET_0"
)

// secrets are a connection's first traffic secrets, as crypto/tls tells them.
type secrets struct {
	mem            *memConn
	client, server []byte
}

// tap is the KeyLogWriter of one connection.
type tap struct {
	keys *secrets
	next io.Writer // who is to be told according to the configuration
}

func (t *tap) Write(line []byte) (int, error) {
	if err := t.keys.take(line); err != nil {
		return 0, err
	}
	if t.next != nil {
		return t.next.Write(line)
	}
	// crypto/tls made the line for us and has no other use for it, so that it
	// may be changed, whatever io.Writer says.
	clear(line)
	return len(line), nil
}

// take notes the secret in a line "label random secret".
func (k *secrets) take(line []byte) error {
	label, rest, _ := bytes.Cut(line, []byte(" "))
	var to *[]byte
	switch string(label) {
	case labelClient:
		to = &k.client
	case labelServer:
		to = &k.server
	default:
		return nil
	}
	_, text, _ := bytes.Cut(bytes.TrimSpace(rest), []byte(" "))
	secret := make([]byte, hex.DecodedLen(len(text)))
	if _, err := hex.Decode(secret, text); err != nil {
		return errors.New("crypto/tls told a secret that is not one")
	}
	*to = secret
	k.mem.flights = 0
	return nil
}

// layer makes our layer for the connection; nil: it is one for the stock layer.
// rest is what the peer sent behind its handshake.
func (k *secrets) layer(state tls.ConnectionState, client bool, rest []byte) (Layer, error) {
	s, ok := suiteOf(state.CipherSuite)
	// After it had the secrets, crypto/tls wrote the end of its handshake and
	// nothing else: no record is numbered yet.
	if !ok || state.Version != tls.VersionTLS13 || k.mem.flights > 1 {
		clear(k.client)
		clear(k.server)
		return nil, nil
	}
	in, out := k.client, k.server
	if client {
		in, out = out, in
	}
	if len(in) != s.secret || len(out) != s.secret {
		return nil, fmt.Errorf("crypto/tls told no secrets for %s", tls.CipherSuiteName(state.CipherSuite))
	}
	o, err := newOwn(s, state, client, in, out)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		o.held.hold(rest)
	}
	return o, nil
}
