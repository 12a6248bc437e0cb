package podwatch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/warren-mesh/warren/nodeagent/enroll"
)

const (
	component = "warren-nodeagent"
	// sayAgain is when what was said about a pod is said once more, if it still holds,
	// and sayAnew when something else may be said.
	sayAgain = 5 * time.Minute
	sayAnew  = 5 * time.Second
	// forget is when nobody remembers that it was said.
	forget    = 20 * time.Minute
	maxEvents = 2048 // that are remembered
	maxText   = 900  // bytes of an Event's message
)

// Events writes Events on pods. Of each kind a pod has the latest only, and the same
// one at most every five minutes. What cannot be written is tried again, until there
// is something newer to say.
type Events struct {
	client kubernetes.Interface
	node   string
	log    *slog.Logger

	mu   sync.Mutex
	said map[eventKey]*saying
	err  error
	wake chan struct{}
}

type eventKey struct {
	pod  enroll.PodName
	uid  string
	kind enroll.NoticeKind
}

// saying is the latest of a kind about a pod.
type saying struct {
	job
	text    string
	unsaid  bool
	written time.Time // when it, or what was there before it, was written
	first   time.Time // when this text came up
	count   int32     // how often this text was written
}

// NewEvents prepares a writer; Run makes it write.
func NewEvents(client kubernetes.Interface, node string, log *slog.Logger) *Events {
	return &Events{client: client, node: node, log: log, said: make(map[eventKey]*saying), wake: make(chan struct{}, 1)}
}

// Tell takes a notice. It does not block.
func (e *Events) Tell(n enroll.Notice) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.takeLocked(n, time.Now())
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *Events) takeLocked(n enroll.Notice, now time.Time) {
	key, text := eventKey{n.Pod, n.UID, n.Kind}, plain(n.Text)
	s := e.said[key]
	if s == nil {
		if len(e.said) >= maxEvents {
			return // the log has it
		}
		s = &saying{}
		e.said[key] = s
	}
	switch {
	case s.text != text:
		s.text, s.first, s.count, s.unsaid = text, now, 0, true
		if next := s.written.Add(sayAnew); next.After(s.next) {
			s.next = next
		}
	case !s.unsaid && !s.flying && now.Sub(s.written) >= sayAgain:
		s.unsaid = true
	}
}

// Run writes until ctx ends, and returns nil then.
func (e *Events) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, writesAtOnce)
	for {
		due, wait := e.due(time.Now())
		for key, event := range due {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
			wg.Go(func() {
				defer func() { <-slots }()
				e.write(ctx, key, event)
			})
		}
		if !sleep(ctx, wait, e.wake) {
			return nil
		}
	}
}

// due begins what may begin, forgets what is old, and says when to look again.
func (e *Events) due(now time.Time) (due map[eventKey]*corev1.Event, wait time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	due, wait = make(map[eventKey]*corev1.Event), time.Minute
	for key, s := range e.said {
		if !s.unsaid {
			if !s.flying && now.Sub(s.written) > forget {
				delete(e.said, key)
			}
			continue
		}
		ok, left := s.job.due(now)
		switch {
		case ok:
			s.flying, s.unsaid = true, false
			s.count++
			due[key] = e.event(key, s, now)
		case !s.flying:
			wait = min(wait, left)
		}
	}
	return due, wait
}

// event makes the object. Its name says what it says, so that the same thing is one
// Event however often it is said, also by a successor of this agent.
func (e *Events) event(key eventKey, s *saying, now time.Time) *corev1.Event {
	sum := sha256.Sum256([]byte(key.uid + "\x00" + string(key.kind) + "\x00" + s.text))
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: key.pod.Namespace,
			Name:      strings.TrimRight(key.pod.Name[:min(len(key.pod.Name), 200)], "-.") + "." + hex.EncodeToString(sum[:8]),
		},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: key.pod.Namespace, Name: key.pod.Name, UID: types.UID(key.uid),
		},
		Type: corev1.EventTypeWarning, Reason: string(key.kind), Message: s.text,
		Source:              corev1.EventSource{Component: component, Host: e.node},
		ReportingController: component, ReportingInstance: e.node,
		FirstTimestamp: metav1.NewTime(s.first), LastTimestamp: metav1.NewTime(now), Count: s.count,
	}
}

func (e *Events) write(ctx context.Context, key eventKey, event *corev1.Event) {
	err := e.send(ctx, event)
	if apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		err = nil // nobody is there to be told
	}
	e.mu.Lock()
	s := e.said[key]
	first := err != nil && s.wait == 0
	now := time.Now()
	s.done(now, err, 0)
	switch e.err = err; {
	case err == nil:
		s.written = now
	case s.text == event.Message:
		s.count--
		s.unsaid = true
	}
	e.mu.Unlock()
	if first && ctx.Err() == nil {
		e.log.Warn("cannot write an Event", "pod", key.pod.String(), "reason", event.Reason, "text", event.Message, "err", err)
	}
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// send creates an Event, or says of one that is there that it happened again.
func (e *Events) send(ctx context.Context, event *corev1.Event) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	events := e.client.CoreV1().Events(event.Namespace)
	_, err := events.Create(ctx, event, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	body, err := json.Marshal(map[string]any{"count": max(event.Count, 2), "lastTimestamp": event.LastTimestamp})
	if err != nil {
		return err
	}
	_, err = events.Patch(ctx, event.Name, types.MergePatchType, body, metav1.PatchOptions{})
	return err
}

// Problem says what keeps Events from being written; nil when nothing does.
func (e *Events) Problem() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return fmt.Errorf("events: %w", e.err)
	}
	return nil
}

// plain makes a message of a text: bounded, and without what does not print.
func plain(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == unicode.ReplacementChar || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, text)
	if len(text) <= maxText {
		return text
	}
	cut := maxText
	for cut > 0 && text[cut]&0xc0 == 0x80 { // not inside a letter
		cut--
	}
	return text[:cut] + "…"
}
