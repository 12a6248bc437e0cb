package controlplane

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/workqueue"
)

const statusWriters = 4

// statusWriter keeps a part of the status of objects as it should be.
type statusWriter struct {
	what   string // for the log: of what kind the status is
	client dynamic.Interface
	// wanted returns what is not as it should be, by a name that is the object's own,
	// and a channel that is closed when that may have changed.
	wanted  func() (map[string]wantedStatus, <-chan struct{})
	workers int // zero: statusWriters
	log     *slog.Logger
	writes  counts

	restraint restraint
}

// wantedStatus is an object, and how its status is to change.
type wantedStatus struct {
	resource        schema.GroupVersionResource
	namespace, name string
	generation      int64 // of the object that this is about
	// change returns fields of a status in place of those that an object has, false for
	// one that needs no change.
	change func(now *unstructured.Unstructured) (fields map[string]any, changed bool)
	done   func() // called after it was written; nil for nothing
}

// statusRun is a statusWriter at work.
type statusRun struct {
	*statusWriter
	queue workqueue.TypedRateLimitingInterface[string]

	mu    sync.Mutex
	until map[string]wantedStatus
}

// run writes until ctx ends.
func (s *statusWriter) run(ctx context.Context) {
	run := &statusRun{statusWriter: s, queue: newRetries()}
	work(ctx, run.queue, cmp.Or(s.workers, statusWriters), run.follow, run.process)
}

func (s *statusRun) follow(ctx context.Context) {
	for {
		wanted, changed := s.wanted()
		s.mu.Lock()
		s.until = wanted
		s.mu.Unlock()
		for key := range wanted {
			s.queue.Add(key)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// process writes one object's status.
func (s *statusRun) process(ctx context.Context, key string) error {
	s.mu.Lock()
	want, ok := s.until[key]
	s.mu.Unlock()
	if !ok {
		return nil
	}
	wrote, err := s.write(ctx, key, want)
	switch {
	case apierrors.IsNotFound(err):
		s.restraint.forget(key) // it is gone, or its kind is
		return nil
	case apierrors.IsConflict(err):
		return err // somebody changed it: again
	case err != nil && ctx.Err() == nil:
		s.writes.failedWith(ctx, s.log, "cannot write the status of an object", "what", s.what, "object", key, "err", err)
	case wrote:
		s.restraint.wrote(key, time.Now())
		s.writes.succeeded()
		if want.done != nil {
			want.done()
		}
	}
	return err
}

// write puts our part beside those of others, unless it is there.
func (s *statusRun) write(ctx context.Context, key string, want wantedStatus) (wrote bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	client := s.client.Resource(want.resource).Namespace(want.namespace)
	now, err := client.Get(ctx, want.name, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	fields, changed := want.change(now)
	if !changed || now.GetGeneration() != want.generation { // news of the latter is on its way
		return false, nil
	}
	if wait := s.restraint.wait(key, time.Now()); wait > 0 {
		s.log.Warn("somebody else writes the status of an object, too: it is left as it is for a while", "what", s.what, "object", key, "for", wait)
		s.queue.AddAfter(key, wait)
		return false, nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": now.GetResourceVersion()}, // a conflict, if it changes meanwhile
		"status":   fields,
	})
	if err != nil {
		return false, err
	}
	_, err = client.Patch(ctx, want.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}, "status")
	return err == nil, err
}

// condition is what a status should say of one matter; the zero value is nothing.
type condition struct {
	accepted        bool
	reason, message string
}

func statusText(yes bool) string {
	if yes {
		return string(metav1.ConditionTrue)
	}
	return string(metav1.ConditionFalse)
}

// withCondition returns the conditions of an object with ours of a type as wanted.
func withCondition(o *unstructured.Unstructured, kind string, want condition, now time.Time) (conditions []any, changed bool) {
	list, _, err := unstructured.NestedSlice(o.Object, "status", "conditions")
	if err != nil {
		list = nil // what is no list is nobody's
	}
	conditions = []any{}
	found := false
	since := now.UTC().Format(time.RFC3339)
	for _, entry := range list {
		c, ok := entry.(map[string]any)
		if !ok || c["type"] != kind {
			conditions = append(conditions, entry)
			continue
		}
		found = true
		if c["status"] == statusText(want.accepted) {
			if at, ok := c["lastTransitionTime"].(string); ok {
				since = cmp.Or(at, since)
			}
			if c["reason"] == want.reason && c["message"] == want.message && observed(c) == o.GetGeneration() {
				return nil, false
			}
		}
	}
	if want == (condition{}) {
		return conditions, found
	}
	made := map[string]any{
		"type": kind, "status": statusText(want.accepted), "reason": want.reason, "message": want.message, "lastTransitionTime": since,
	}
	switch generation := o.GetGeneration(); {
	case generation == 0: // a kind that counts none
	case o.GroupVersionKind().Group == "":
		made["observedGeneration"] = generation
	default: // Istio's are written as texts
		made["observedGeneration"] = fmt.Sprint(generation)
	}
	return append(conditions, made), true
}

// observed is the generation that a condition is about.
func observed(c map[string]any) (n int64) {
	if v, ok := c["observedGeneration"]; ok {
		_, _ = fmt.Sscan(fmt.Sprint(v), &n) // what is no number is zero
	}
	return n
}

// joined is one message of many reasons.
func joined(reasons []string) string {
	text := strings.Join(reasons, "; ")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage-4], "") + " ..."
	}
	return text
}
