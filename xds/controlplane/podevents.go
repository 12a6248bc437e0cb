package controlplane

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"

	"github.com/warren-mesh/warren/xds/translate"
)

const (
	// podProblem is the reason of an Event about a pod whose object cannot be taken as it
	// is, such as one that claims another pod's address.
	podProblem = "MeshProblem"

	podEventWriters = 2
	maxPodEvents    = 1024             // that are remembered, and so written, at a time
	podEventAgain   = 30 * time.Minute // what goes on is told again; Kubernetes forgets after an hour
)

// podEvents tells of what is wrong with pods by Events on them. Those who look at a pod
// do not read our log.
type podEvents struct {
	client kubernetes.Interface
	world  func() (translate.Objects, translate.Result, <-chan struct{})
	log    *slog.Logger
	writes counts
}

// podEventRun is a podEvents at work.
type podEventRun struct {
	*podEvents
	queue workqueue.TypedRateLimitingInterface[string]

	mu   sync.Mutex
	told map[string]*toldPod // by the Event's namespace/name
}

// toldPod is an Event, and when it is to be written next; zero is now.
type toldPod struct {
	event *corev1.Event
	next  time.Time
}

// run writes until ctx ends.
func (p *podEvents) run(ctx context.Context) {
	run := &podEventRun{podEvents: p, queue: newRetries(), told: make(map[string]*toldPod)}
	work(ctx, run.queue, podEventWriters, run.follow, run.process)
}

func (p *podEventRun) follow(ctx context.Context) {
	tick := time.NewTicker(podEventAgain)
	defer tick.Stop()
	for {
		objects, result, changed := p.world()
		for _, key := range p.take(podsToTell(objects, result), time.Now()) {
			p.queue.Add(key)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// take keeps what is wrong now, forgets what is not any more, and returns what is due.
func (p *podEventRun) take(now map[string]*corev1.Event, at time.Time) (due []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.told {
		if now[key] == nil {
			delete(p.told, key)
		}
	}
	for key, event := range now {
		t := p.told[key]
		if t == nil {
			if len(p.told) >= maxPodEvents {
				continue // the log has it
			}
			t = &toldPod{event: event}
			p.told[key] = t
		}
		if !at.Before(t.next) {
			t.next = at.Add(podEventAgain)
			due = append(due, key)
		}
	}
	return due
}

// process writes one Event.
func (p *podEventRun) process(ctx context.Context, key string) error {
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
		p.writes.failedWith(ctx, p.log, "cannot write an Event", "pod", t.event.InvolvedObject.Name, "namespace", t.event.Namespace, "text", t.event.Message, "err", err)
	}
	return err
}

// write creates an Event, or says of the one that is there that it is still so.
func (p *podEventRun) write(ctx context.Context, event *corev1.Event, now time.Time) error {
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

// podsToTell are the Events that there should be. An Event's name says what it says, so
// that the same is one Event whichever replica writes it.
func podsToTell(objects translate.Objects, result translate.Result) map[string]*corev1.Event {
	out := make(map[string]*corev1.Event)
	var pods map[string]*corev1.Pod
	for _, problem := range result.Problems {
		if problem.Kind != "Pod" {
			continue
		}
		if pods == nil { // there is no problem, as a rule
			pods = make(map[string]*corev1.Pod, len(objects.Pods))
			for _, p := range objects.Pods {
				pods[p.Namespace+"/"+p.Name] = p
			}
		}
		if pod := pods[problem.Namespace+"/"+problem.Name]; pod != nil {
			event := podEvent(pod, joined([]string{strings.TrimPrefix(problem.Field+": "+problem.Reason, ": ")}))
			out[event.Namespace+"/"+event.Name] = event
		}
	}
	return out
}

func podEvent(pod *corev1.Pod, text string) *corev1.Event {
	sum := sha256.Sum256([]byte(string(pod.UID) + "\x00" + text))
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace,
			Name:      strings.TrimRight(pod.Name[:min(len(pod.Name), 200)], "-.") + "." + hex.EncodeToString(sum[:8]),
			Labels:    managed(),
		},
		InvolvedObject:      corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Type:                corev1.EventTypeWarning,
		Reason:              podProblem,
		Message:             text,
		Source:              corev1.EventSource{Component: fieldManager},
		ReportingController: fieldManager,
	}
}
