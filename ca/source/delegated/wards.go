package delegated

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/podproc"
)

// forgetAfter bounds what is remembered of processes of pods that nobody asks for any more.
const forgetAfter = time.Hour

// ward is who holds what SPIRE gave for a process.
type ward struct {
	uid string
	ns  netns.ID
	id  spiffeid.ID
}

// wards are the processes that were attested and whose streams an outage has ended. What was given for such a process stays
// in use, but only while it lives: a container that starts meanwhile has been attested by nobody. So a process is watched from
// its attestation to its end or to the next attestation of its ward, through streams as well as between them.
type wards struct {
	ctx  context.Context // of the source
	done *sync.WaitGroup

	mu  sync.Mutex
	all map[ward]*watched
}

type watched struct {
	cancel context.CancelFunc
	ended  time.Time // zero: it lives
}

// keep watches p, and closes it then.
func (w *wards) keep(who ward, p *podproc.Process) {
	ctx, cancel := context.WithCancel(w.ctx)
	one := &watched{cancel: cancel}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.all, func(_ ward, o *watched) bool { return !o.ended.IsZero() && time.Since(o.ended) > forgetAfter })
	if old := w.all[who]; old != nil {
		old.cancel()
	}
	w.all[who] = one
	w.done.Go(func() {
		defer cancel()
		_ = p.Wait(ctx) // one that cannot be watched counts as ended
		_ = p.Close()
		if ctx.Err() != nil {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		one.ended = time.Now()
	})
}

// forget is when SPIRE has attested a process of who again.
func (w *wards) forget(who ward) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if one := w.all[who]; one != nil {
		one.cancel()
		delete(w.all, who)
	}
}

// ended reports, once, that the process that was attested has ended since.
func (w *wards) ended(who ward) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	one := w.all[who]
	if one == nil || one.ended.IsZero() {
		return false
	}
	delete(w.all, who)
	return true
}
