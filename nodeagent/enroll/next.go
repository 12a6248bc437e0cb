package enroll

import (
	"fmt"
	"reflect"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/xds/translate"
)

// Phase is where a pod stands. It is written to disk.
type Phase string

// The phases. A pod that is absent has none.
const (
	PhaseAbsent    Phase = ""
	PhaseLeft      Phase = "left"      // outside the mesh; known in case that changes
	PhaseAdding    Phase = "adding"    // in its ADD, which may still fail
	PhaseEnrolling Phase = "enrolling" // running, and on its way into the mesh
	PhaseEnrolled  Phase = "enrolled"
	PhaseLeaving   Phase = "leaving" // running, and on its way out
)

// served says whether the proxy is to have listeners in a pod of this phase.
// Those on the way in or out are included: their rules may be in place.
func (p Phase) served() bool {
	return p == PhaseEnrolling || p == PhaseEnrolled || p == PhaseLeaving
}

// want is what the objects ask for a pod.
type want int

const (
	wantUnknown want = iota // the pod is not among the objects (any more)
	wantOut
	wantIn
)

// action is what to do with a pod of one's own accord.
type action int

const (
	actNone   action = iota
	actEnroll        // listeners, then rules
	actLeave         // the way back
	actAdjust        // other rules, everything else as it is
)

// String names the action for logs.
func (a action) String() string {
	return [...]string{"none", "enroll", "leave", "adjust rules"}[a]
}

// next says what to do with a pod, given where it stands, what is wanted, and
// whether its rules are (as far as known) those that are wanted.
//
// A pod without an object is left as it is: on its way out, until DEL or the end
// of its namespace, its connections deserve to be carried. An ADD under way is
// not ours to meddle with.
func next(p Phase, w want, rulesRight bool) action {
	switch {
	case w == wantUnknown || p == PhaseAdding || p == PhaseAbsent:
		return actNone
	case w == wantIn && p != PhaseEnrolled:
		return actEnroll
	case w == wantIn && !rulesRight:
		return actAdjust
	case w == wantOut && p.served():
		return actLeave
	default:
		return actNone
	}
}

// redirection is the rules for a pod: the node's choice, and what the pod's
// annotations change about it.
func (e *Enroller) redirection(p Pod) event.Redirect {
	r := e.cfg.Redirect
	r.Backend = e.cfg.Backend.Name()
	o := p.Eligible.Redirect
	r.BypassInbound = r.BypassInbound || o.BypassInbound
	if o.DNS != nil {
		r.DNS = *o.DNS
	}
	r.VirtualInterfaces, _ = usableInterfaces(o)
	return r
}

// usableInterfaces are those of a pod's virtual interfaces that can be redirected.
// The others are named: one of them must not keep the pod from starting.
func usableInterfaces(o translate.RedirectOptions) (usable, refused []string) {
	for _, name := range o.VirtualInterfaces {
		if err := (redirect.Config{IPv4: true, VirtualInterfaces: []string{name}}).Validate(); err != nil {
			refused = append(refused, fmt.Sprintf("annotation %s: %q cannot be redirected and is ignored: %v", translate.AnnotationVirtualIface, name, err))
			continue
		}
		usable = append(usable, name)
	}
	return usable, refused
}

// sameRules compares redirections; no interfaces are none, nil or not.
func sameRules(a, b event.Redirect) bool {
	if len(a.VirtualInterfaces) == 0 && len(b.VirtualInterfaces) == 0 {
		a.VirtualInterfaces, b.VirtualInterfaces = nil, nil
	}
	return reflect.DeepEqual(a, b)
}
