package nodeagent

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

func TestRivalBySocket(t *testing.T) {
	defer goleak.VerifyNone(t)
	cfg := Defaults()
	cfg.HostRoot, cfg.RunDir = t.TempDir(), t.TempDir()
	path := filepath.Join(cfg.HostRoot, IstioSocket)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	r := newRival(&cfg)
	says := func() string { r.look(t.Context()); return r.name() }
	if got := says(); got != "" {
		t.Errorf("without a socket: %q", got)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if got := says(); got != "socket "+IstioSocket {
		t.Errorf("with Istio's agent: %q", got)
	}
	if err := os.Link(path, r.own); err != nil { // Istio's plugin has been told of our folder
		t.Fatal(err)
	}
	if got := says(); got != "" {
		t.Errorf("our own socket: %q", got)
	}
	if err := os.Remove(r.own); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if got := says(); got != "" {
		t.Errorf("a socket that nobody listens on any more: %q", got)
	}
}
