package nodeagent

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// IstioSocket is where Istio's node agent listens for its plugin, on the host.
const IstioSocket = "/var/run/istio-cni/pluginevent.sock"

const (
	rivalLooks  = 2 * time.Second
	rivalWithin = 500 * time.Millisecond
)

// rival looks whether Istio's node agent answers its CNI plugin on this node. Its pod is
// seen among the objects; the socket also tells of one that is no pod.
type rival struct {
	path string // where we see it
	own  string // our own socket for that plugin, which is none of its
	says atomic.Pointer[string]
}

func newRival(cfg *Config) *rival {
	r := &rival{path: filepath.Join(cfg.HostRoot, IstioSocket), own: filepath.Join(cfg.RunDir, pluginSocket)}
	none := ""
	r.says.Store(&none)
	return r
}

// name is what shows it, empty for nothing. It looks at what the last look found.
func (r *rival) name() string { return *r.says.Load() }

// run looks until ctx ends.
func (r *rival) run(ctx context.Context) error {
	tick := time.NewTicker(rivalLooks)
	defer tick.Stop()
	for {
		r.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (r *rival) look(ctx context.Context) {
	says := ""
	if !sameFile(r.path, r.own) && answersAt(ctx, r.path) {
		says = "socket " + IstioSocket
	}
	r.says.Store(&says)
}

func sameFile(a, b string) bool {
	x, errA := os.Stat(a)
	y, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(x, y)
}

// answersAt says whether a process listens there: a dead one leaves its socket.
func answersAt(ctx context.Context, path string) bool {
	ctx, cancel := context.WithTimeout(ctx, rivalWithin)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
