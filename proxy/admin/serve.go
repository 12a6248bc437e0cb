package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const (
	headerTimeout = 2 * time.Second
	maxHeader     = 8 << 10
	idleTimeout   = 2 * time.Minute
)

// Serve answers on l with h until ctx ends. It owns l. The listener closes at
// once then; answers under way get a moment.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	return serve(ctx, l, server(h, log, 0))
}

// ServeOpen is Serve on a port that anybody may connect to.
func ServeOpen(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	return serve(ctx, &crowd{Listener: l}, server(h, log, visitTime))
}

// server has limit, unless it is 0, for a whole request, and for its answer.
func server(h http.Handler, log *slog.Logger, limit time.Duration) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: maxHeader, IdleTimeout: idleTimeout,
		ReadTimeout: limit, WriteTimeout: limit, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

func serve(ctx context.Context, l net.Listener, srv *http.Server) error {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	err := srv.Serve(l)
	if stop() {
		_ = srv.Close()
	} else {
		<-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("admin: %w", err)
}

// ListenUnix listens on a Unix socket that only root can use. A socket that is
// there already is replaced: it is left over, or an older proxy's that drains.
// Closing the listener removes the socket, if it still is ours.
func ListenUnix(path string) (net.Listener, error) {
	// Made under another name and moved: nobody meets it before its mode is set,
	// and the path is never without a socket.
	tmp := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d", filepath.Base(path), os.Getpid()))
	_ = os.Remove(tmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	l.SetUnlinkOnClose(false)
	own, err := os.Stat(tmp)
	err = errors.Join(err, os.Chmod(tmp, 0o600))
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return nil, fmt.Errorf("admin: %w", errors.Join(err, l.Close(), os.Remove(tmp)))
	}
	return &unixListener{Listener: l, path: path, own: own}, nil
}

type unixListener struct {
	net.Listener
	path string
	own  os.FileInfo
}

func (l *unixListener) Close() error {
	if now, err := os.Stat(l.path); err == nil && os.SameFile(now, l.own) {
		_ = os.Remove(l.path)
	}
	return l.Listener.Close()
}
