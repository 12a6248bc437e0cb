package controlplane

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"

	"golang.org/x/net/netutil"
)

const (
	// maxConnections bounds each port: the nodes of a large cluster, twice.
	maxConnections = 10_000
	// defaultPerAddress bounds those of one address: a proxy has two or three, and the one
	// that takes its place as many. Behind an address that is translated there may be more.
	defaultPerAddress = 64
)

// listeners are those of a control plane; nil are those that were not asked for.
type listeners struct {
	secure, plaintext, health, metrics net.Listener
}

// listen opens all of them, or none and says everything that was in the way.
func listen(cfg Config, log *slog.Logger) (listeners, error) {
	var l listeners
	var errs []error
	for _, one := range []struct {
		to         *net.Listener
		flag, addr string
	}{
		{&l.secure, "listen", cfg.Listen},
		{&l.plaintext, "plaintext-listen", cfg.PlaintextListen},
		{&l.health, "health-listen", cfg.HealthListen},
		{&l.metrics, "metrics-listen", cfg.MetricsListen},
	} {
		if one.addr == "" {
			continue
		}
		opened, err := listenOn(one.addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", one.flag, err))
			continue
		}
		*one.to = newPerAddress(netutil.LimitListener(opened, maxConnections), cfg.ConnectionsPerAddress, log)
	}
	if len(errs) > 0 {
		l.close()
		return listeners{}, errors.Join(errs...)
	}
	return l, nil
}

func (l listeners) close() {
	for _, one := range []net.Listener{l.secure, l.plaintext, l.health, l.metrics} {
		if one != nil {
			_ = one.Close() // nothing was accepted
		}
	}
}

func listenOn(addr string) (net.Listener, error) {
	path, unix := strings.CutPrefix(addr, "unix://")
	if !unix {
		return net.Listen("tcp", addr)
	}
	// A socket that a process before us left behind is in the way; anything else is not
	// ours to remove.
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
