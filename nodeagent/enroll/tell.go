package enroll

import (
	"slices"
)

// Notice is what there is to say about a pod to those who look at its object.
type Notice struct {
	Pod  PodName
	UID  string // of the object; empty: not known
	Kind NoticeKind
	Text string
}

// NoticeKind is what a notice is about.
type NoticeKind string

// The kinds, in the words of an Event's reason.
const (
	NoticeRefused    NoticeKind = "MeshRefused"           // it is not in the mesh and should be
	NoticeAnnotation NoticeKind = "MeshAnnotationIgnored" // one of its annotations is not understood
	NoticeStrict     NoticeKind = "MeshConnectionsEnded"  // connections of before were ended
	NoticeAddress    NoticeKind = "MeshAddressNotItsOwn"  // one of its addresses is another pod's, or not there
)

func (e *Enroller) tell(pod PodName, uid string, kind NoticeKind, text string) {
	if e.cfg.Tell == nil {
		return
	}
	if uid == "" {
		if view, _ := e.cfg.World.View(); view != nil {
			uid = view.pods[pod].ObjectUID
		}
	}
	e.cfg.Tell(Notice{pod, uid, kind, text})
}

// objectUID is that of the object of a pod whose UID the runtime says: an Event with a
// predecessor's is shown with nobody's. Only a static pod has another one.
func (e *Enroller) objectUID(name PodName, uid string) string {
	if view, _ := e.cfg.World.View(); view != nil {
		if p, ok := view.Pod(name, uid); ok && p.ObjectUID != "" {
			return p.ObjectUID
		}
	}
	return uid
}

// markEnabled is the annotation's word for a pod in the mesh.
const markEnabled = "enabled"

// Mark is a pod whose annotation ambient.istio.io/redirection does not say where
// the pod stands.
type Mark struct {
	Pod     PodName
	UID     string // of the object
	Enabled bool   // it is to say "enabled"; else it is to go
}

// Marks returns the pods whose annotation is to be changed, by name, and a channel
// that is closed when a pod's phase has changed since. The control plane goes by
// the annotation: a pod has it while it is in the mesh, which begins after its
// listeners and rules are in place, and ends before they go.
func (e *Enroller) Marks() ([]Mark, <-chan struct{}) {
	view, _ := e.cfg.World.View()
	rival := ""
	if view != nil {
		rival = e.rival(view)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if view == nil {
		return nil, e.changed
	}
	var marks []Mark
	for _, p := range view.Pods() {
		if p.ObjectUID == "" {
			continue
		}
		in := false
		var box *sandbox
		m := e.members[p.UID]
		if m != nil && m.box != nil {
			in, box = m.phase == PhaseEnrolled, m.box
		}
		switch {
		case in && p.Marked != markEnabled:
			marks = append(marks, Mark{p.PodName, p.ObjectUID, true})
		case in || p.Marked == "":
			if m != nil {
				m.unmark = false
			}
		case box != nil && m.unmark, rival == "" && !view.Exempt(p.Namespace) && e.staleMarkLocked(p, m):
			marks = append(marks, Mark{p.PodName, p.ObjectUID, false})
		}
	}
	return marks, e.changed
}

// staleMarkLocked says whether a pod that is not in the mesh and says so is known
// not to be: it is outside and is to be there, or will not run any more.
func (e *Enroller) staleMarkLocked(p Pod, m *member) bool {
	if m == nil || m.box == nil {
		return p.Finished
	}
	return m.phase == PhaseLeaving || m.phase == PhaseLeft && !p.Eligible.InMesh
}

// wakeLocked tells those that follow phases.
func (e *Enroller) wakeLocked() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// warnings are what is wrong with a pod's annotations, the interfaces that cannot
// be redirected included.
func warnings(p Pod) []string {
	_, refused := usableInterfaces(p.Eligible.Redirect)
	return append(slices.Clone(p.Eligible.Warnings), refused...)
}
