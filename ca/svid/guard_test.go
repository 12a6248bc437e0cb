package svid_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/svid"
)

// outage is a Watcher that can be away, or hang, while the processes that it has attested live.
type outage struct {
	ca      *fake.Signer
	waiting atomic.Int64 // for the end of processes

	mu    sync.Mutex
	err   error // of all, if set
	hangs bool
	lost  chan struct{} // closed: streams that are open end
	lives map[string]chan struct{}
}

func newOutage(t *testing.T) *outage {
	return &outage{ca: newFake(t), lost: make(chan struct{}), lives: map[string]chan struct{}{}}
}

func (o *outage) Watch(ctx context.Context, pod svid.Pod, id spiffeid.ID, emit func(svid.Update)) error {
	o.mu.Lock()
	err, hangs, lost := o.err, o.hangs, o.lost
	ended := make(chan struct{})
	if err == nil {
		o.lives[pod.UID] = ended
	}
	o.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	emit(svid.Update{SVIDs: []svid.SVID{issue(o.ca, id, 1000*time.Hour)}})
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-lost:
	}
	return &svid.OutlivedError{Err: errors.New("lost"), Wait: func(ctx context.Context) error {
		o.waiting.Add(1)
		defer o.waiting.Add(-1)
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
}

func (o *outage) away(hangs bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err, o.hangs = errors.New("away"), hangs
	close(o.lost)
	o.lost = make(chan struct{})
}

func (o *outage) back() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err, o.hangs = nil, false
}

// process is the one that stands for a pod: closed, it ends.
func (o *outage) process(p svid.Pod) chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lives[p.UID]
}

// The end of the process by which a pod was attested is told in an outage as at any other time, whenever the source is asked
// next.
func TestTheProcessEndsWhileTheSourceIsAway(t *testing.T) {
	for name, hangs := range map[string]bool{"and fails": false, "and hangs": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const pods = 40
				o := newOutage(t)
				var k taken
				m, stop := run(t, svid.Config{Watcher: o, Withdrawn: k.withdrawn})
				var leases [pods]*svid.Lease
				for n := range leases {
					leases[n] = m.Acquire(pod(n), sa("a"))
					mustIdentity(t, leases[n])
				}
				o.away(hangs)
				time.Sleep(time.Hour) // pauses are as long as they get
				if hangs == m.Health().Silent.IsZero() {
					t.Fatalf("silent: %v", m.Health().Silent)
				}
				for n := range 10 {
					time.Sleep(7 * time.Second)
					close(o.process(pod(n)))
					time.Sleep(14 * time.Second)
					if leases[n].Current() == nil {
						t.Fatalf("pod %d: taken back before another process could have been attested", n)
					}
					time.Sleep(2 * time.Second)
					if leases[n].Current() != nil || !errors.Is(k.why(pod(n).UID), svid.ErrProcessEnded) {
						t.Fatalf("pod %d: in use without a process that was attested; %v", n, k.why(pod(n).UID))
					}
				}
				for n := 10; n < pods; n++ {
					if leases[n].Current() == nil {
						t.Errorf("pod %d: the outage takes it back", n)
					}
				}
				if got := o.waiting.Load(); got != pods-10 {
					t.Errorf("%d processes are waited for", got)
				}
				last := o.process(pod(20))
				o.back()
				time.Sleep(time.Hour)
				for _, l := range leases {
					mustIdentity(t, l)
				}
				close(last) // another stands for the pod now
				time.Sleep(time.Minute)
				if leases[20].Current() == nil || o.waiting.Load() > 0 {
					t.Errorf("in use: %v; %d processes are waited for", leases[20].Current(), o.waiting.Load())
				}
				// Whoever does not use what was given has nobody waited for.
				o.away(hangs)
				time.Sleep(time.Minute)
				leases[0].Release()
				synctest.Wait()
				if got := o.waiting.Load(); got != pods-1 {
					t.Errorf("%d processes are waited for after one pod has gone", got)
				}
				if err := m.Switch(svid.Source{Watcher: newOutage(t)}, 0); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if got := o.waiting.Load(); got != 0 {
					t.Errorf("%d processes are waited for after the source was changed", got)
				}
				stop()
			})
		})
	}
}
