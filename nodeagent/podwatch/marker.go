package podwatch

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/xds/translate"
)

// markedFor is how long a written annotation may take to come back in a view before it
// is written again.
const markedFor = 10 * time.Second

// Marks says whose annotation is to be changed; enroll.Enroller does. The channel is
// closed when that may have changed.
type Marks func() ([]enroll.Mark, <-chan struct{})

// Marker writes the annotation ambient.istio.io/redirection of pods, by which control
// planes know who is in the mesh. It follows what is to be written and what is there,
// so that nothing that fails or is lost stays so. Nobody waits for it.
type Marker struct {
	client kubernetes.Interface
	marks  Marks
	world  enroll.World
	log    *slog.Logger

	mu   sync.Mutex
	jobs map[markKey]*job
	err  error // of the last attempt that failed, while there is something left to write
	wake chan struct{}
}

type markKey struct {
	uid     string
	enabled bool
}

// NewMarker prepares a marker; Run makes it write.
func NewMarker(client kubernetes.Interface, marks Marks, world enroll.World, log *slog.Logger) *Marker {
	return &Marker{client: client, marks: marks, world: world, log: log, jobs: make(map[markKey]*job), wake: make(chan struct{}, 1)}
}

// Run writes until ctx ends, and returns nil then.
func (m *Marker) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, writesAtOnce)
	for {
		_, viewed := m.world.View()
		marks, changed := m.marks()
		due, wait := m.due(marks, time.Now())
		for _, mark := range due {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
			wg.Go(func() {
				defer func() { <-slots }()
				m.write(ctx, mark)
			})
		}
		if !sleep(ctx, wait, viewed, changed, m.wake) {
			return nil
		}
	}
}

// due begins the jobs that may begin, and says when to look again.
func (m *Marker) due(marks []enroll.Mark, now time.Time) (due []enroll.Mark, wait time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wait = lastRetry
	wanted := make(map[markKey]bool, len(marks))
	for _, mark := range marks {
		key := markKey{mark.UID, mark.Enabled}
		wanted[key] = true
		j := m.jobs[key]
		if j == nil {
			j = new(job)
			m.jobs[key] = j
		}
		ok, left := j.due(now)
		if ok {
			j.flying = true
			due = append(due, mark)
		} else if !j.flying {
			wait = min(wait, left)
		}
	}
	for key, j := range m.jobs {
		if !wanted[key] && !j.flying {
			delete(m.jobs, key)
		}
	}
	if len(m.jobs) == 0 {
		m.err = nil
	}
	return due, wait
}

func (m *Marker) write(ctx context.Context, mark enroll.Mark) {
	err := m.patch(ctx, mark)
	if apierrors.IsNotFound(err) { // the pod went
		err = nil
	}
	m.mu.Lock()
	j := m.jobs[markKey{mark.UID, mark.Enabled}]
	first := err != nil && j.wait == 0
	j.done(time.Now(), err, markedFor)
	if err != nil {
		m.err = fmt.Errorf("annotation of pod %s: %w", mark.Pod, err)
	}
	m.mu.Unlock()
	if first && ctx.Err() == nil {
		m.log.Warn("cannot write a pod's annotation", "pod", mark.Pod.String(), "annotation", translate.AnnotationRedirection, "enabled", mark.Enabled, "err", err)
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// patch changes the annotation of the pod with that UID, and of no later one of its
// name. It goes by way of the status, which needs no right to change pods.
func (m *Marker) patch(ctx context.Context, mark enroll.Mark) error {
	var value any // null removes it
	if mark.Enabled {
		value = "enabled"
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": mark.UID, "annotations": map[string]any{translate.AnnotationRedirection: value},
	}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err = m.client.CoreV1().Pods(mark.Pod.Namespace).Patch(ctx, mark.Pod.Name, types.MergePatchType, body, metav1.PatchOptions{}, "status")
	return err
}

// Problem says what keeps annotations from being written; nil when nothing does.
func (m *Marker) Problem() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}
