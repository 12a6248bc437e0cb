package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/warren-mesh/warren/xds/translate"
)

// rootKey is the entry of a root ConfigMap that proxies mount; its label is Istio's.
const (
	rootKey     = "root-cert.pem"
	labelConfig = "istio.io/config"
)

const (
	writeTimeout = 15 * time.Second
	rootWriters  = 4
)

// withoutRoot are namespaces that hold no pods of users; istiod leaves the same out.
func withoutRoot(namespace string) bool {
	return namespace == "kube-node-lease" || namespace == "kube-public" || namespace == "local-path-storage"
}

// rootMaps keeps a ConfigMap with the root bundle in every namespace.
type rootMaps struct {
	client kubernetes.Interface
	name   string
	roots  func() string // PEM; empty while there is no CA
	world  func() (translate.Objects, <-chan struct{})
	log    *slog.Logger
	again  chan struct{} // capacity 1: the roots have changed
	writes counts

	restraint restraint
}

// changed has every ConfigMap looked at.
func (r *rootMaps) changed() {
	select {
	case r.again <- struct{}{}:
	default:
	}
}

// counts are of what was written, and of what could not be.
type counts struct {
	done, failed atomic.Int64
	failing      atomic.Bool
}

func (c *counts) succeeded() {
	c.done.Add(1)
	c.failing.Store(false)
}

// failedWith counts, and logs the first failure since the last success: an API server
// that is away fails all of them, again and again.
func (c *counts) failedWith(ctx context.Context, log *slog.Logger, msg string, args ...any) {
	c.failed.Add(1)
	level := slog.LevelDebug
	if !c.failing.Swap(true) {
		level = slog.LevelError
	}
	log.Log(ctx, level, msg, args...)
}

// rootRun is a rootMaps at work.
type rootRun struct {
	*rootMaps
	queue workqueue.TypedRateLimitingInterface[string] // namespaces to look at
	store cache.Store                                  // ConfigMaps of the name

	mu         sync.Mutex
	namespaces map[string]bool // those that are to have one
}

// run writes until ctx ends.
func (r *rootMaps) run(ctx context.Context) {
	factory := informers.NewSharedInformerFactoryWithOptions(r.client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "metadata.name=" + r.name }),
		informers.WithTransform(onlyRoot))
	informer := factory.Core().V1().ConfigMaps().Informer()
	run := &rootRun{rootMaps: r, store: informer.GetStore(), queue: newRetries()}
	defer run.queue.ShutDown()
	add := func(obj any) {
		if name, err := cache.DeletionHandlingObjectToName(obj); err == nil {
			run.queue.Add(name.Namespace)
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, obj any) { add(obj) }, DeleteFunc: add}
	if _, err := informer.AddEventHandler(handler); err != nil {
		r.log.Error("cannot follow ConfigMaps", "err", err)
		return
	}
	factory.StartWithContext(ctx)
	defer factory.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return
	}
	work(ctx, run.queue, rootWriters, run.follow, run.process)
}

func newRetries() workqueue.TypedRateLimitingInterface[string] {
	return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](500*time.Millisecond, time.Minute))
}

// work runs follow, which fills the queue, and workers that process what is in it, until
// ctx ends and all of them have returned.
func work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[string], workers int, follow func(context.Context), process func(context.Context, string) error) {
	var busy sync.WaitGroup
	for range workers {
		busy.Go(func() {
			for {
				item, stop := queue.Get()
				if stop {
					return
				}
				if err := process(ctx, item); err != nil && ctx.Err() == nil {
					queue.AddRateLimited(item)
				} else {
					queue.Forget(item)
				}
				queue.Done(item)
			}
		})
	}
	follow(ctx)
	queue.ShutDown()
	busy.Wait()
}

// onlyRoot keeps of a ConfigMap what is compared.
func onlyRoot(obj any) (any, error) {
	m, ok := obj.(*corev1.ConfigMap)
	if !ok {
		return obj, nil
	}
	kept := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, ResourceVersion: m.ResourceVersion}}
	if root, ok := m.Data[rootKey]; ok {
		kept.Data = map[string]string{rootKey: root}
	}
	return kept, nil
}

// follow looks at every namespace that comes, and at all when the roots change.
func (r *rootRun) follow(ctx context.Context) {
	all := false
	for {
		objects, changed := r.world()
		now := make(map[string]bool, len(objects.Namespaces))
		for _, ns := range objects.Namespaces {
			if ns.DeletionTimestamp == nil && ns.Status.Phase != corev1.NamespaceTerminating && !withoutRoot(ns.Name) {
				now[ns.Name] = true
			}
		}
		r.mu.Lock()
		before := r.namespaces
		r.namespaces = now
		r.mu.Unlock()
		for ns := range now {
			if all || !before[ns] {
				r.queue.Add(ns)
			}
		}
		for ns := range before {
			if !now[ns] {
				r.restraint.forget(ns)
			}
		}
		all = false
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-r.again:
			all = true
		}
	}
}

// process makes one namespace's ConfigMap what it should be.
func (r *rootRun) process(ctx context.Context, namespace string) error {
	r.mu.Lock()
	wanted := r.namespaces[namespace]
	r.mu.Unlock()
	roots := r.roots()
	if !wanted || roots == "" {
		return nil
	}
	obj, there, err := r.store.GetByKey(namespace + "/" + r.name)
	if err != nil {
		return err
	}
	if m, ok := obj.(*corev1.ConfigMap); there && ok && m.Data[rootKey] == roots {
		return nil
	}
	if wait := r.restraint.wait(namespace, time.Now()); wait > 0 {
		r.log.Warn("somebody else writes the root ConfigMap, too: it is left as it is for a while", "namespace", namespace, "configmap", r.name, "for", wait)
		r.queue.AddAfter(namespace, wait)
		return nil
	}
	err = r.write(ctx, namespace, roots, there)
	switch {
	case err == nil:
		r.restraint.wrote(namespace, time.Now())
		r.writes.succeeded()
	case apierrors.IsAlreadyExists(err), there && apierrors.IsNotFound(err):
		return fmt.Errorf("it is about to be seen: %w", err)
	case apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil // the namespace is going
	case ctx.Err() == nil:
		r.writes.failedWith(ctx, r.log, "cannot write the root ConfigMap: pods in this namespace cannot check whom they speak to", "namespace", namespace, "configmap", r.name, "err", err)
	}
	return err
}

func (r *rootRun) write(ctx context.Context, namespace, roots string, there bool) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	labels := managed()
	labels[labelConfig] = "true"
	data := map[string]string{rootKey: roots}
	maps := r.client.CoreV1().ConfigMaps(namespace)
	if !there {
		_, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: r.name, Labels: labels}, Data: data},
			metav1.CreateOptions{FieldManager: fieldManager})
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}, "data": data})
	if err != nil {
		return err
	}
	_, err = maps.Patch(ctx, r.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	return err
}
