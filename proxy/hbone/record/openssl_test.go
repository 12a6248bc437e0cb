package record

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// openSSL is an `openssl s_client` or `s_server` that takes commands.
type openSSL struct {
	t     *testing.T
	in    io.Writer
	lines chan string // of its output
}

func runOpenSSL(t *testing.T, args ...string) *openSSL {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("make deps installs it: ", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	cmd := exec.CommandContext(ctx, path, args...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	o := &openSSL{t: t, in: in, lines: make(chan string, 10_000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(o.lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			o.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		r.Close()
		<-done
	})
	return o
}

// say gives it a line: a command when it begins with one's letter.
func (o *openSSL) say(line string) {
	o.t.Helper()
	if _, err := io.WriteString(o.in, line+"\n"); err != nil {
		o.t.Fatal(err)
	}
}

// see waits for a line with text in it.
func (o *openSSL) see(text string) string {
	o.t.Helper()
	var seen []string
	for line := range o.lines {
		if strings.Contains(line, text) {
			return line
		}
		seen = append(seen, line)
	}
	o.t.Fatalf("ended without %q:\n%s", text, strings.Join(seen, "\n"))
	return ""
}

// ends says that the program closed its output.
func (o *openSSL) ends() {
	for range o.lines {
	}
}

// end is our end of a connection with OpenSSL.
type end struct {
	t    *testing.T
	conn net.Conn
	l    Layer
	got  []byte
}

// until reads, and answers what is to be answered, until ok.
func (e *end) until(what string, ok func() bool) error {
	e.t.Helper()
	in, out := make([]byte, 32<<10), make([]byte, 0, 64<<10)
	for !ok() {
		_ = e.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := e.conn.Read(in)
		if err != nil {
			e.t.Fatalf("waiting for %s: %v after %q", what, err, e.got)
		}
		plain, _, err := e.l.Open(out, in[:n])
		e.got = append(e.got, plain...)
		if err != nil {
			return err
		}
		if e.l.Pending() {
			e.write("")
		}
	}
	return nil
}

func (e *end) write(text string) {
	e.t.Helper()
	wire, err := e.l.Seal(nil, []byte(text))
	if err == nil {
		_, err = e.conn.Write(wire)
	}
	if err != nil {
		e.t.Fatal(err)
	}
}

func (e *end) read(text string) {
	e.t.Helper()
	if err := e.until(text, func() bool { return bytes.Contains(e.got, []byte(text)) }); err != nil {
		e.t.Fatalf("waiting for %q: %v", text, err)
	}
	e.got = nil
}

// startOpenSSL connects our layer with OpenSSL in the role other than ours.
func startOpenSSL(t *testing.T, suite string, client bool) (*openSSL, *end) {
	t.Helper()
	cfg := selfSigned(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var conn net.Conn
	var o *openSSL
	if client {
		file := filepath.Join(t.TempDir(), "pem")
		writePEM(t, file, cfg.Certificates[0])
		o = runOpenSSL(t, "s_server", "-tls1_3", "-ciphersuites", suite, "-cert", file, "-key", file, "-naccept", "1", "-accept", "127.0.0.1:0")
		_, addr, _ := strings.Cut(o.see("ACCEPT "), "ACCEPT ")
		conn, err = net.Dial("tcp", addr)
		cfg = trusting()
	} else {
		o = runOpenSSL(t, "s_client", "-tls1_3", "-ciphersuites", suite, "-connect", l.Addr().String())
		conn, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	layer, err := Handshake(t.Context(), conn, cfg, client, Own)
	if err != nil {
		t.Fatal(err)
	}
	return o, &end{t: t, conn: conn, l: layer}
}

func writePEM(t *testing.T, file string, c tls.Certificate) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestOpenSSL: in both roles, with key updates that each side forces.
func TestOpenSSL(t *testing.T) {
	for _, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"} {
		for _, client := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/client=%v", suite, client), func(t *testing.T) {
				t.Parallel()
				o, e := startOpenSSL(t, suite, client)
				e.write("greeting from here\n")
				o.see("greeting from here")
				o.say("a greeting from there")
				e.read("a greeting from there\n")
				ours, isOurs := e.l.(*own)
				if isOurs != (suite != "TLS_CHACHA20_POLY1305_SHA256") {
					t.Fatalf("%T", e.l)
				}
				if isOurs {
					forceKeyUpdates(t, o, e, ours)
				}
				bye := func() {
					wire, err := e.l.CloseWrite(nil)
					if err == nil {
						_, err = e.conn.Write(wire)
					}
					if err != nil {
						t.Error(err)
					}
				}
				if client { // s_server says close_notify in answer only
					bye()
					o.see("DONE")
				} else {
					o.say("Q")
				}
				if err := e.until("close_notify", func() bool { return false }); !errors.Is(err, io.EOF) {
					t.Errorf("it ends with %v", err)
				}
				if !client {
					bye()
				}
				e.conn.Close()
				o.ends()
			})
		}
	}
}

func forceKeyUpdates(t *testing.T, o *openSSL, e *end, ours *own) {
	t.Helper()
	for i := range 3 {
		for _, command := range []string{"k", "K"} { // K asks us to change ours, too
			in, out := string(ours.in.secret), string(ours.out.secret)
			o.say(command)
			if err := e.until("key update", func() bool { return string(ours.in.secret) != in }); err != nil {
				t.Fatal(err)
			}
			if asked := string(ours.out.secret) != out; asked != (command == "K") {
				t.Errorf("%s: our key changed: %v", command, asked)
			}
			word := fmt.Sprintf("word %d after %s", i, command)
			o.say("their " + word)
			e.read("their " + word)
			e.write("our " + word + "\n")
			o.see("our " + word)
		}
		in := string(ours.in.secret)
		AskKeyUpdate(ours)
		e.write(fmt.Sprintf("please, %d\n", i))
		o.see(fmt.Sprintf("please, %d", i))
		o.say(fmt.Sprintf("as you like, %d", i))
		e.read(fmt.Sprintf("as you like, %d", i))
		if string(ours.in.secret) == in {
			t.Error("its key has not changed")
		}
	}
}

// TestOpenSSLLearnsWhy: an alert of ours is understood.
func TestOpenSSLLearnsWhy(t *testing.T) {
	o, e := startOpenSSL(t, "TLS_AES_128_GCM_SHA256", true)
	e.write("hello there\n")
	o.see("hello there")
	e.l.(*own).fail(errMAC)
	e.write("")
	o.see("alert bad record mac")
}
