package record

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
)

// recording keeps what is written, and has nothing to read.
type recording struct {
	net.Conn
	wrote []byte
}

func (r *recording) Write(b []byte) (int, error) {
	r.wrote = append(r.wrote, b...)
	return len(b), nil
}
func (r *recording) Read([]byte) (int, error) { return 0, io.EOF }

// hello is a client's first record, with an extension of that type, empty, if it is
// not zero.
func hello(t *testing.T, extension uint16) []byte {
	t.Helper()
	c, _ := net.Pipe()
	defer c.Close()
	r := &recording{Conn: c}
	_ = tls.Client(r, trusting()).Handshake()
	record := r.wrote
	if extension == 0 {
		return record
	}
	// Behind version and random: session id, suites, compression, then extensions.
	at := headerSize + 4 + 2 + 32
	at += 1 + int(record[at])
	at += 2 + int(binary.BigEndian.Uint16(record[at:]))
	at += 1 + int(record[at])
	record = binary.BigEndian.AppendUint16(record, extension)
	record = append(record, 0, 0)
	longer := func(at int) {
		binary.BigEndian.PutUint16(record[at:], binary.BigEndian.Uint16(record[at:])+4)
	}
	longer(at)
	longer(3)              // of the record
	longer(headerSize + 2) // of the message: the lower two of three bytes
	return record
}

// TestNoEarlyData: who offers 0-RTT data, or sends some without having offered it, is
// refused with an alert, and nothing of it is ever taken for a tunnel's bytes.
func TestNoEarlyData(t *testing.T) {
	const earlyData = 42 // RFC 8446 §4.2
	early := append([]byte{23, 3, 3, 0, 32}, make([]byte, 32)...)
	for name, tc := range map[string]struct {
		say   []byte
		alert byte
		want  string
	}{
		"offered and sent":     {append(hello(t, earlyData), early...), 110, "early data"},
		"offered":              {hello(t, earlyData), 110, "early data"},
		"sent without a word":  {append(hello(t, 0), early...), 0, ""},
		"sent before anything": {early, 0, ""},
	} {
		for _, choice := range []Choice{Own, Stock} {
			c, s := wires(t)
			said := make(chan []byte, 1)
			go func() {
				_, _ = c.Write(tc.say)
				_ = c.(*net.TCPConn).CloseWrite()
				b, _ := io.ReadAll(c)
				said <- b
			}()
			cfg := selfSigned(t)
			cfg.MinVersion = tls.VersionTLS13
			l, err := Handshake(context.Background(), s, cfg, false, choice)
			if err == nil || l != nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v", name, err)
			}
			s.Close()
			b := <-said
			alert := len(b) == 7 && b[0] == 21 && b[5] == 2 && b[6] == tc.alert
			if tc.alert != 0 && !alert {
				t.Errorf("%s: the client was told %x, want the fatal alert %d", name, b, tc.alert)
			}
		}
	}
	// The extension is what does it, not the way in which it got there.
	c, s := wires(t)
	go func() {
		_, _ = c.Write(hello(t, 0x0a0a)) // one of those that say nothing (RFC 8701)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}()
	if _, err := Handshake(context.Background(), s, selfSigned(t), false, Own); err == nil || strings.Contains(err.Error(), "early") {
		t.Errorf("another extension: %v", err)
	}
}
