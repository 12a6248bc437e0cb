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

const (
	statusWriters = 4
	maxWrote      = 50_000 // objects, of which is known what was written last
)

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
	// says reports whether an object's status is as this has it be.
	says func(now *unstructured.Unstructured) bool
	mark string // what it is to be, in a word: equal for what is equal
	done func() // called after it was written; nil for nothing
}

// same reports whether two want the same of one object.
func (w wantedStatus) same(o wantedStatus) bool {
	return w.resource == o.resource && w.generation == o.generation && w.mark == o.mark
}

// statusRun is a statusWriter at work.
type statusRun struct {
	*statusWriter
	queue workqueue.TypedRateLimitingInterface[string]

	mu    sync.Mutex
	until map[string]wantedStatus
	// waits are those that are in the queue, or will be: to be tried again after a failure,
	// or after a pause. A change of something else is no reason to do that earlier.
	waits map[string]bool
	// wrote is what was written last, of those that had it before.
	wrote map[string]wantedStatus
}

// run writes until ctx ends.
func (s *statusWriter) run(ctx context.Context) {
	run := &statusRun{statusWriter: s, queue: newRetries(), waits: make(map[string]bool), wrote: make(map[string]wantedStatus)}
	work(ctx, run.queue, cmp.Or(s.workers, statusWriters), run.follow, run.process)
}

func (s *statusRun) follow(ctx context.Context) {
	for {
		wanted, changed := s.wanted()
		for _, key := range s.take(wanted) {
			s.queue.Add(key)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// take notes what is wanted now, and returns what is to be looked at.
func (s *statusRun) take(wanted map[string]wantedStatus) (due []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, want := range wanted {
		if before, ok := s.until[key]; !ok || !s.waits[key] || !want.same(before) {
			s.waits[key] = true
			due = append(due, key)
		}
	}
	s.until = wanted
	return due
}

// process writes one object's status.
func (s *statusRun) process(ctx context.Context, key string) error {
	s.mu.Lock()
	want, ok := s.until[key]
	delete(s.waits, key) // what is wanted from here on is another turn's
	s.mu.Unlock()
	if !ok {
		return nil
	}
	if wait := s.restraint.wait(key, time.Now()); wait > 0 {
		s.again(key)
		s.queue.AddAfter(key, wait)
		return nil
	}
	wrote, err := s.write(ctx, key, want)
	switch {
	case apierrors.IsNotFound(err):
		s.forget(key) // it is gone, or its kind is
		return nil
	case apierrors.IsConflict(err):
		s.again(key)
		return err // somebody changed it: again
	case err != nil && ctx.Err() == nil:
		s.again(key)
		s.writes.failedWith(ctx, s.log, "cannot write the status of an object", "what", s.what, "object", key, "err", err)
	case wrote:
		s.writes.succeeded()
		if want.done != nil {
			want.done()
		}
	}
	return err
}

// again notes that an object comes again without being asked for.
func (s *statusRun) again(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waits[key] = true
}

func (s *statusRun) forget(key string) {
	s.restraint.forget(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.wrote, key)
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
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": now.GetResourceVersion()}, // a conflict, if it changes meanwhile
		"status":   fields,
	})
	if err != nil {
		return false, err
	}
	if _, err = client.Patch(ctx, want.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}, "status"); err != nil {
		return false, err
	}
	s.note(key, want, now)
	return true, nil
}

// note counts a write that answers somebody else's: where what we had written last into
// this generation of the object was not there any more.
func (s *statusRun) note(key string, want wantedStatus, found *unstructured.Unstructured) {
	s.mu.Lock()
	before, ok := s.wrote[key]
	if len(s.wrote) >= maxWrote {
		clear(s.wrote) // whoever is written against is there again soon
	}
	s.wrote[key] = want
	s.mu.Unlock()
	if !ok || before.generation != want.generation || before.says(found) {
		return
	}
	if pause := s.restraint.wrote(key, time.Now()); pause > 0 {
		s.log.Warn("somebody else writes the status of an object, too: it is left as it is for a while", "what", s.what, "object", key, "for", pause)
	}
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
