package podwatch

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/warren-mesh/warren/xds/translate"
)

// Labelled finds the namespaces in which pods of any node are in the mesh by their own
// labels. The watch is of one node's pods; what the plugin goes by while the agent is
// away must not depend on which of a namespace's pods are on this node just then.
type Labelled struct {
	Pods      Metadata
	Watcher   *Watcher
	Selectors translate.Selectors
	Log       *slog.Logger

	mu    sync.Mutex
	found map[string]time.Time // when
}

// Metadata lists objects of one kind, without the rest of them.
type Metadata interface {
	List(context.Context, metav1.ListOptions) (*metav1.PartialObjectMetadataList, error)
}

// PodMetadata is that of an API server's pods.
func PodMetadata(at *rest.Config) (Metadata, error) {
	client, err := metadata.NewForConfig(at)
	if err != nil {
		return nil, fmt.Errorf("podwatch: %w", err)
	}
	return client.Resource(corev1.SchemeGroupVersion.WithResource("pods")), nil
}

const (
	labelledEvery  = time.Hour
	labelledKept   = 24 * time.Hour // then it is asked for again
	labelledWithin = 10 * time.Second
	// What a look takes at most: pods of a page, pages; and namespaces that are known and
	// need not be told of again.
	labelledPage, labelledPages, labelledKnown = 500, 40, 100
)

// Run looks when the objects are known, and from time to time until ctx ends; it returns
// nil then.
func (l *Labelled) Run(ctx context.Context) error {
	wait := firstRetry
	for {
		view, changed := l.Watcher.View()
		next := labelledEvery
		if view == nil {
			if !sleep(ctx, next, changed) {
				return nil
			}
			continue
		}
		if err := l.Look(ctx); err != nil && ctx.Err() == nil {
			l.Log.Warn("cannot look for pods of other nodes that are in the mesh by their own labels", "err", err, "retry", wait)
			next, wait = wait, min(2*wait, lastRetry)
		} else {
			wait = firstRetry
		}
		if !sleep(ctx, next) {
			return nil
		}
	}
}

// Look asks the API server and tells the watcher. One look at a time.
func (l *Labelled) Look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, labelledWithin)
	defer cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	found := maps.Clone(l.found)
	maps.DeleteFunc(found, func(_ string, at time.Time) bool { return now.Sub(at) > labelledKept })
	if found == nil {
		found = make(map[string]time.Time)
	}
	namespaces := l.Watcher.namespaces()
	for _, selector := range l.Selectors.ByPod() {
		err := l.list(ctx, selector, l.known(namespaces, found), func(p *corev1.Pod) {
			ns := namespaces[p.Namespace]
			if ns != nil && translate.NamespaceMode(ns, []*corev1.Pod{p}, l.Selectors) == translate.ModeMixed {
				found[p.Namespace] = now
			}
		})
		if err != nil {
			return err
		}
	}
	l.found = found
	l.Watcher.mixed(slices.Collect(maps.Keys(found)))
	return nil
}

// known are namespaces of whose pods nothing need be heard.
func (l *Labelled) known(namespaces map[string]*corev1.Namespace, found map[string]time.Time) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(namespaces)) {
		if _, ok := found[name]; ok || translate.NamespaceMode(namespaces[name], nil, l.Selectors) == translate.ModeIn {
			names = append(names, name)
		}
	}
	return names[:min(len(names), labelledKnown)]
}

func (l *Labelled) list(ctx context.Context, selector string, without []string, each func(*corev1.Pod)) error {
	// Pods of the node's network are in no mesh, and it does not show in their metadata.
	fields := []string{"spec.hostNetwork!=true"}
	for _, ns := range without {
		fields = append(fields, "metadata.namespace!="+ns)
	}
	// Of no version: whoever is content with the API server's memory, which is version 0, gets
	// all of them at once whatever the limit.
	o := metav1.ListOptions{LabelSelector: selector, FieldSelector: strings.Join(fields, ","), Limit: labelledPage}
	for range labelledPages {
		pods, err := l.Pods.List(ctx, o)
		if err != nil {
			return fmt.Errorf("podwatch: list pods with %s: %w", selector, err)
		}
		for i := range pods.Items {
			each(&corev1.Pod{ObjectMeta: pods.Items[i].ObjectMeta})
		}
		if pods.Continue == "" {
			return nil
		}
		o.Continue = pods.Continue
	}
	return nil
}
