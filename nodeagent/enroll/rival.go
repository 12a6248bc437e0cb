package enroll

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/warren-mesh/warren/cni/event"
)

// How Istio's node agent is known.
const (
	rivalLabel = "k8s-app"
	rivalName  = "istio-cni-node"
)

// rivalAgent says whether a pod is the agent of Istio's CNI, and whether it is at work, or
// was since it came: one that is not is between two versions of itself, or keeps crashing.
func rivalAgent(p *corev1.Pod) (there, atWork bool) {
	if p.Labels[rivalLabel] != rivalName {
		return false, false
	}
	switch p.Status.Phase {
	case corev1.PodRunning: // also where its container has never done so for long
		return true, wasReady(p)
	case corev1.PodSucceeded, corev1.PodFailed:
		return false, false // a remainder; who follows it is another pod
	}
	return true, false
}

// readySet is within how long of a pod's beginning kubelet first says whether it is ready.
const readySet = 5 * time.Second

// wasReady says whether a pod is ready, or was: kubelet has changed its mind about it then.
func wasReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue || p.Status.StartTime != nil && c.LastTransitionTime.Sub(p.Status.StartTime.Time) > readySet
		}
	}
	return false
}

// noteRival keeps the first by name of each kind.
func (v *View) noteRival(p *corev1.Pod) {
	there, atWork := rivalAgent(p)
	name := p.Namespace + "/" + p.Name
	switch {
	case atWork && (v.rival == "" || name < v.rival):
		v.rival = name
	case there && !atWork && (v.rivalDue == "" || name < v.rivalDue):
		v.rivalDue = name
	}
}

// rivalSeen is when another mesh's agent was last at work here. While that is replaced,
// as in an upgrade, there is none for a moment; to take its pods then would put two
// agents into each of them once it is back.
type rivalSeen struct {
	mu   sync.Mutex
	name string
	last time.Time
}

// rivalry names what shows that another mesh's agent is on this node, empty when nothing
// does: it is at work, or the network configuration runs its plugin, or it is on its way,
// or it was here a moment ago. been: it is or was at work, and is not merely announced.
func (e *Enroller) rivalry(view *View) (name string, been bool) {
	now := e.rivalAtWork(view)
	if now == "" && e.cfg.RivalChained != nil {
		if file, _ := e.cfg.RivalChained(); file != "" {
			now = "its plugin in " + file
		}
	}
	s := &e.rivalWas
	s.mu.Lock()
	defer s.mu.Unlock()
	switch due := view != nil && view.rivalDue != ""; {
	case now != "":
		s.name, s.last = now, time.Now()
		return now, true
	case due && s.name != "":
		s.last = time.Now()
		return "pod " + view.rivalDue + ", which is being replaced", true
	case due:
		return "pod " + view.rivalDue + ", which is not ready yet", false
	case s.name != "" && time.Since(s.last) < e.times.Rival:
		return s.name + ", which was there a moment ago", true
	}
	s.name = ""
	return "", false
}

// rivalAtWork is what shows that it is at work now.
func (e *Enroller) rivalAtWork(view *View) string {
	switch {
	case view != nil && view.rival != "":
		return "pod " + view.rival
	case e.cfg.Rival == nil:
		return ""
	}
	return e.cfg.Rival()
}

// takesOver says whether the other mesh's agent is here to take pods that ours leaves: it
// is at work, or was and is being replaced. One that was merely announced may never come.
func (e *Enroller) takesOver() bool {
	view, _ := e.cfg.World.View()
	_, been := e.rivalry(view)
	return e.rivalAtWork(view) != "" || been && view != nil && view.rivalDue != ""
}

// rival is rivalry's name alone.
func (e *Enroller) rival(view *View) string {
	name, _ := e.rivalry(view)
	return name
}

// Rival is rival for a report.
func (e *Enroller) Rival() string {
	view, _ := e.cfg.World.View()
	return e.rival(view)
}

// toRival leaves a new pod to another mesh's agent that is on this node, if that one has
// redirected it or its plugin is run behind ours. Otherwise it would start in no mesh at
// all, and waits; unless that agent was never at work, so that it may never be. left:
// the answer is for the plugin.
func (s *addition) toRival(ctx context.Context) (left bool, answer event.Answer, err error) {
	view, _ := s.e.cfg.World.View()
	rival, been := s.e.rivalry(view)
	if rival == "" {
		return false, event.Answer{}, nil
	}
	theirs, err := s.e.cfg.Backend.Foreign(s.ns)
	if err != nil {
		return false, event.Answer{}, internal(err)
	}
	reason := rivalReason(rival)
	if len(theirs) == 0 {
		switch {
		case s.e.rivalFollows():
			reason += "; its plugin, which is run behind ours, decides about this pod"
		case been:
			return false, event.Answer{}, &event.Error{Retryable: true, Msg: reason, Details: "it has not redirected this pod either, which would start in no mesh"}
		default:
			return false, event.Answer{}, nil
		}
	}
	s.leave(ctx, reason)
	s.e.tell(s.pod.PodName, s.pod.ObjectUID, NoticeRefused, reason)
	return true, event.Answer{Action: event.Leave, Reason: reason}, nil
}

// rivalFollows says whether runtimes run the other mesh's plugin behind ours.
func (e *Enroller) rivalFollows() bool {
	if e.cfg.RivalChained == nil {
		return false
	}
	_, follows := e.cfg.RivalChained()
	return follows
}
