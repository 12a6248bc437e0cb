package record

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// selfSigned is a server's configuration; who is who is tested elsewhere.
func selfSigned(tb testing.TB) *tls.Config {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

func trusting() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// wires are the two ends of a TCP connection.
func wires(tb testing.TB) (client, server net.Conn) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		tb.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// TestWhichLayer: ours is used exactly where it applies.
func TestWhichLayer(t *testing.T) {
	for name, tc := range map[string]struct {
		choice  Choice
		version uint16
		ours    bool
	}{
		"own": {Own, tls.VersionTLS13, !fips140.Enabled()}, "stock": {Stock, tls.VersionTLS13, false},
		"TLS 1.2": {Own, tls.VersionTLS12, false},
	} {
		t.Run(name, func(t *testing.T) {
			c, s := wires(t)
			sc, cc := selfSigned(t), trusting()
			sc.MaxVersion = tc.version
			var server Layer
			var serr error
			var wg sync.WaitGroup
			wg.Go(func() { server, serr = Handshake(context.Background(), s, sc, false, tc.choice) })
			client, err := Handshake(context.Background(), c, cc, true, tc.choice)
			wg.Wait()
			if err = errors.Join(err, serr); err != nil {
				t.Fatal(err)
			}
			for _, l := range []Layer{client, server} {
				if _, ours := l.(*own); ours != tc.ours || l.State().Version != tc.version {
					t.Errorf("%T, TLS %x", l, l.State().Version)
				}
			}
		})
	}
}

// TestFIPS: nothing is ours in FIPS mode, which is chosen when a process starts.
func TestFIPS(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestWhichLayer$", "-test.v")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=on")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("PASS: TestWhichLayer/own")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestCryptoTLSAsPeer, in both roles, against our layer on a real connection.
// The configuration has tickets on and an own key log: ours has neither changed.
func TestCryptoTLSAsPeer(t *testing.T) {
	for _, client := range []bool{true, false} {
		c, s := wires(t)
		sc, cc := selfSigned(t), trusting()
		cc.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		shared := selfSigned(t)
		sc.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return shared, nil }
		var log bytes.Buffer
		conn, cfg, peer := s, sc, tls.Client(c, cc)
		if client {
			conn, cfg, peer = c, cc, tls.Server(s, sc)
		}
		cfg.KeyLogWriter = &log
		var wg sync.WaitGroup
		wg.Go(func() {
			defer peer.Close()
			if _, err := io.Copy(peer, peer); err != nil {
				t.Errorf("crypto/tls: %v", err)
			}
		})
		l, err := Handshake(context.Background(), conn, cfg, client, Own)
		if err != nil {
			t.Fatal(err)
		}
		if client && !strings.Contains(log.String(), labelServer) {
			t.Errorf("the key log is %q", log.String())
		}
		if shared.KeyLogWriter != nil || shared.SessionTicketsDisabled || shared.DynamicRecordSizingDisabled {
			t.Error("the shared configuration was changed")
		}
		text := make([]byte, 1<<20)
		_, _ = rand.Read(text)
		wg.Go(func() {
			for b := range slices.Chunk(text, 100_000) {
				out, err := l.(*own).rekey(nil, false)
				if err == nil {
					out, err = l.Seal(out, b)
				}
				if err == nil {
					_, err = conn.Write(out)
				}
				if err != nil {
					t.Error(err)
				}
			}
			out, err := l.CloseWrite(nil)
			if err == nil {
				_, err = conn.Write(out)
			}
			if err != nil {
				t.Error(err)
			}
		})
		if got, err := readAll(l, conn); err != io.EOF || !bytes.Equal(got, text) {
			t.Errorf("client %v: %d bytes came back, %v", client, len(got), err)
		}
		wg.Wait()
	}
}

// readAll opens what comes from conn until an error.
func readAll(l Layer, conn io.Reader) (got []byte, err error) {
	in, out := make([]byte, 30_000), make([]byte, 0, 100_000)
	n := 0
	for {
		src := in[:n]
		for {
			plain, took, err := l.Open(out, src)
			got = append(got, plain...)
			if err != nil {
				return got, err
			}
			if src = src[took:]; len(src) == 0 && cap(plain)-len(plain) >= Room {
				break
			}
		}
		if n, err = conn.Read(in); err != nil {
			return got, err
		}
	}
}

// TestHandshakeReadsNoFurther: whatever way a handshake arrives, and whatever
// comes behind it, crypto/tls has no byte that is not its own.
func TestHandshakeReadsNoFurther(t *testing.T) {
	for _, max := range []int{1, 2, 7, 4096, 100_000} {
		c, s := wires(t)
		sc := selfSigned(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			peer := tls.Client(&joined{Conn: c}, trusting())
			defer peer.Close()
			for range 5 { // all of it in one segment with the client's Finished
				if _, err := peer.Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
					t.Error(err)
				}
			}
			_ = peer.NetConn().(*joined).release()
		})
		conn := &slow{Conn: s, max: max}
		l, err := Handshake(context.Background(), conn, sc, false, Own)
		if err != nil {
			t.Fatal(err)
		}
		if _, ours := l.(*own); !ours {
			t.Fatalf("%T", l)
		}
		if got, err := readAll(l, conn); err != io.EOF || len(got) != 5000 {
			t.Errorf("by %d: got %d bytes, %v", max, len(got), err)
		}
		wg.Wait()
	}
}

// slow reads max bytes at a time.
type slow struct {
	net.Conn
	max int
}

func (s *slow) Read(p []byte) (int, error) { return s.Conn.Read(p[:min(len(p), s.max)]) }

// joined keeps back what is written after the first message.
type joined struct {
	net.Conn
	first, free bool
	held        []byte
}

func (j *joined) Write(p []byte) (int, error) {
	if !j.first || j.free {
		j.first = true
		return j.Conn.Write(p)
	}
	j.held = append(j.held, p...)
	return len(p), nil
}

func (j *joined) release() error {
	j.free = true
	_, err := j.Conn.Write(j.held)
	return err
}

// TestTapWipes: a secret's text does not stay behind.
func TestTapWipes(t *testing.T) {
	k := &secrets{mem: &memConn{}}
	line := []byte(labelServer + " 00112233 a11af9f0\n")
	if n, err := (&tap{keys: k}).Write(line); n != len(line) || err != nil || !zero(line) {
		t.Errorf("%d, %v, %q", n, err, line)
	}
	if !bytes.Equal(k.server, []byte{0xa1, 0x1a, 0xf9, 0xf0}) {
		t.Errorf("secret %x", k.server)
	}
	if _, err := (&tap{keys: k}).Write([]byte(labelServer + " 00 xy\n")); err == nil {
		t.Error("nonsense was taken for a secret")
	}
}
