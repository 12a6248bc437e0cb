package controlplane

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"

	"github.com/warren-mesh/warren/xds/kube"
	"github.com/warren-mesh/warren/xds/translate"
)

const (
	// meshProblem is the reason of an Event about an object that cannot be taken as it is,
	// such as a pod that claims another pod's address.
	meshProblem = "MeshProblem"

	eventWriters = 2
	maxEvents    = 1024             // that are remembered, and so written, at a time
	maxEventsIn  = 128              // of them, in one namespace
	eventAgain   = 30 * time.Minute // what goes on is told again; Kubernetes forgets after an hour
)

// objectEvents tells of what is wrong with objects by Events on them. Those who write or
// look at an object do not read our log.
type objectEvents struct {
	client kubernetes.Interface
	world  func() (translate.Objects, translate.Result, <-chan struct{})
	unread func() []kube.Problem // nil for none
	log    *slog.Logger
	writes counts

	again       chan struct{} // capacity 1: unaddressed has changed
	mu          sync.Mutex
	unaddressed []translate.Problem
}

// setUnaddressed takes what is wrong with the addresses of hosts.
func (p *objectEvents) setUnaddressed(problems []translate.Problem) {
	p.mu.Lock()
	same := slices.Equal(problems, p.unaddressed)
	p.unaddressed = problems
	p.mu.Unlock()
	if same {
		return
	}
	select {
	case p.again <- struct{}{}:
	default:
	}
}

// due returns the Events that there should be, and a channel that is closed when that may
// have changed.
func (p *objectEvents) due() (map[string]*corev1.Event, <-chan struct{}) {
	objects, result, changed := p.world()
	p.mu.Lock()
	problems := slices.Concat(result.Problems, p.unaddressed)
	p.mu.Unlock()
	var unread []kube.Problem
	if p.unread != nil {
		unread = p.unread()
	}
	return eventsOf(objects, problems, unread), changed
}

// objectEventRun is an objectEvents at work.
type objectEventRun struct {
	*objectEvents
	queue workqueue.TypedRateLimitingInterface[string]

	mu   sync.Mutex
	told map[string]*toldObject // by the Event's namespace/name
	in   map[string]int         // how many of them are in a namespace
}

// toldObject is an Event, and when it is to be written next; zero is now.
type toldObject struct {
	event *corev1.Event
	next  time.Time
}

// run writes until ctx ends.
func (p *objectEvents) run(ctx context.Context) {
	run := &objectEventRun{objectEvents: p, queue: newRetries(), told: make(map[string]*toldObject), in: make(map[string]int)}
	work(ctx, run.queue, eventWriters, run.follow, run.process)
}

func (p *objectEventRun) follow(ctx context.Context) {
	tick := time.NewTicker(eventAgain)
	defer tick.Stop()
	for {
		events, changed := p.objectEvents.due()
		for _, key := range p.take(events, time.Now()) {
			p.queue.Add(key)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-p.again:
		case <-tick.C:
		}
	}
}

// take keeps what is wrong now, forgets what is not any more, and returns what is due.
func (p *objectEventRun) take(now map[string]*corev1.Event, at time.Time) (due []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, t := range p.told {
		if now[key] == nil {
			delete(p.told, key)
			p.in[t.event.Namespace]--
		}
	}
	for key, event := range now {
		t := p.told[key]
		if t == nil {
			if len(p.told) >= maxEvents || p.in[event.Namespace] >= maxEventsIn {
				continue // the log has it
			}
			t = &toldObject{event: event}
			p.told[key] = t
			p.in[event.Namespace]++
		}
		if !at.Before(t.next) {
			t.next = at.Add(eventAgain)
			due = append(due, key)
		}
	}
	return due
}

// process writes one Event.
func (p *objectEventRun) process(ctx context.Context, key string) error {
	p.mu.Lock()
	t := p.told[key]
	p.mu.Unlock()
	if t == nil {
		return nil
	}
	err := p.write(ctx, t.event.DeepCopy(), time.Now())
	switch {
	case err == nil:
		p.writes.succeeded()
	case apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil // nobody is there to be told
	case ctx.Err() == nil:
		p.writes.failedWith(ctx, p.log, "cannot write an Event", "kind", t.event.InvolvedObject.Kind, "name", t.event.InvolvedObject.Name, "namespace", t.event.Namespace, "text", t.event.Message, "err", err)
	}
	return err
}

// write creates an Event, or says of the one that is there that it is still so.
func (p *objectEventRun) write(ctx context.Context, event *corev1.Event, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	event.FirstTimestamp, event.LastTimestamp, event.Count = metav1.NewTime(now), metav1.NewTime(now), 1
	events := p.client.CoreV1().Events(event.Namespace)
	_, err := events.Create(ctx, event, metav1.CreateOptions{FieldManager: fieldManager})
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	patch, err := json.Marshal(map[string]any{"lastTimestamp": event.LastTimestamp})
	if err != nil {
		return err
	}
	_, err = events.Patch(ctx, event.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	return err
}
