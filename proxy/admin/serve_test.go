package admin

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose connections are in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

// Who does not finish a request's head holds a connection for two seconds only.
func TestSlowHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- Serve(ctx, l, http.NotFoundHandler(), slog.New(slog.DiscardHandler)) }()
		client, server := net.Pipe()
		l.conns <- server
		start := time.Now()
		if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost:"); err != nil {
			t.Fatal(err)
		}
		hangUp := time.AfterFunc(time.Hour, func() { client.Close() }) // or it would wait for ever
		defer hangUp.Stop()
		_, _ = io.ReadAll(client)
		if d := time.Since(start); d != headerTimeout {
			t.Errorf("held for %s", d)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
