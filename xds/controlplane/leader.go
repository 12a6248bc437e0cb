package controlplane

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/warren-mesh/warren/xds/kube"
)

const (
	leaseName = "warren-controlplane-leader"
	// fieldManager is who we are in what we write.
	fieldManager = "warren-controlplane"
)

// managed are the labels of what we make.
func managed() map[string]string {
	return map[string]string{"app.kubernetes.io/managed-by": fieldManager}
}

// leader runs what only one replica may do. All replicas serve.
type leader struct {
	client    kubernetes.Interface
	namespace string
	log       *slog.Logger
	duties    []func(ctx context.Context)
	// How long a lease lasts, within how long it must be renewed, and how often it is tried.
	lease, renew, retry time.Duration

	leads atomic.Bool
}

func newLeader(client kubernetes.Interface, namespace string, log *slog.Logger, duties ...func(context.Context)) *leader {
	return &leader{client: client, namespace: namespace, log: log, duties: duties, lease: 15 * time.Second, renew: 10 * time.Second, retry: 2 * time.Second}
}

// run stands for election until ctx ends, again whenever the lease was lost.
func (l *leader) run(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	ctx = kube.Quietly(ctx, l.log)
	id := host + "_" + rand.Text()[:8]
	for ctx.Err() == nil {
		if err := l.stand(ctx, id); err != nil {
			return fmt.Errorf("leader election: %w", err)
		}
	}
	return nil
}

// stand returns when the lease was lost, or ctx has ended, and the duties with it.
func (l *leader) stand(ctx context.Context, id string) error {
	t := &term{leader: l, id: id}
	defer t.end()
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: l.namespace, Name: leaseName},
			Client:     l.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: id},
		},
		LeaseDuration: l.lease, RenewDeadline: l.renew, RetryPeriod: l.retry,
		// What the duties write is the same whoever writes it: one that is a moment late
		// does no harm.
		ReleaseOnCancel: true,
		Callbacks:       leaderelection.LeaderCallbacks{OnStartedLeading: t.begin, OnStoppedLeading: func() {}},
	})
	if err != nil {
		return err
	}
	elector.Run(ctx)
	return nil
}

// term is the time from winning a lease to losing it. It may begin after its end: the
// elector begins it in a goroutine that it does not wait for.
type term struct {
	*leader
	id string

	mu    sync.Mutex
	ended bool
	busy  sync.WaitGroup
}

func (t *term) begin(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	t.leads.Store(true)
	t.log.Info("this replica leads: it writes root ConfigMaps and the status of objects", "lease", t.namespace+"/"+leaseName, "id", t.id)
	for _, duty := range t.duties {
		t.busy.Go(func() { duty(ctx) })
	}
}

func (t *term) end() {
	t.mu.Lock()
	t.ended = true
	t.mu.Unlock()
	t.busy.Wait()
	if t.leads.Swap(false) {
		t.log.Info("this replica leads no more", "id", t.id)
	}
}
