package record_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/warren-mesh/warren/proxy/hbone/record"
)

// serveAt makes this package's test program a server for TLS test suites, which
// are run by hand: with an RSA certificate, no client certificate, and an answer
// of HTTP/1.0, because tlsfuzzer's scripts speak that.
//
//	RECORD_SERVE=127.0.0.1:4433 [RECORD_STOCK=1] go test ./proxy/hbone/record
const (
	serveAt    = "RECORD_SERVE"
	serveStock = "RECORD_STOCK"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(serveAt); addr != "" {
		fmt.Println(serve(addr))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func serve(addr string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return err
	}
	choice := record.Own
	if os.Getenv(serveStock) != "" {
		choice = record.Stock
	}
	cfg := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion:   tls.VersionTLS13, SessionTicketsDisabled: true,
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go answer(c, cfg, choice)
	}
}

// answer answers requests and echoes lines that are none, until the peer says close_notify or
// something is wrong.
func answer(c net.Conn, cfg *tls.Config, choice record.Choice) {
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	l, err := record.Handshake(ctx, c, cfg, false, choice)
	if err != nil {
		finish(c)
		return
	}
	in, out := make([]byte, 64<<10), make([]byte, 0, 128<<10)
	var got []byte
	for n := 0; ; {
		plain, took, oerr := l.Open(out, in[:n])
		got = append(got, plain...)
		var reply []byte
		switch request := bytes.HasPrefix(got, []byte("GET ")); {
		case request && bytes.Contains(got, []byte("\r\n\r\n")):
			if bytes.Contains(got, []byte("/keyupdate")) {
				record.AskKeyUpdate(l)
			}
			reply, got = []byte("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"), nil
		case !request && bytes.HasSuffix(got, []byte("\n")): // an echo
			reply, got = got, nil
		}
		wire, err := l.Seal(nil, reply)
		if oerr == io.EOF && err == nil {
			wire, err = l.CloseWrite(wire)
		}
		if len(wire) > 0 {
			_, _ = c.Write(wire)
		}
		if oerr != nil || err != nil {
			fmt.Println(c.RemoteAddr(), oerr, err)
			finish(c)
			return
		}
		if took == n {
			if n, err = c.Read(in); err != nil {
				return
			}
			continue
		}
		n = copy(in, in[took:n])
	}
}

// finish lets an alert arrive before the reset that unread bytes cause.
func finish(c net.Conn) {
	_ = c.(*net.TCPConn).CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, c)
}
