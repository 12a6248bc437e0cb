package controlplane

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// oneStatus is a writer of one policy's status, whose turns the test takes.
type oneStatus struct {
	*world
	run *statusRun
	log strings.Builder
}

func newOneStatus(t *testing.T) *oneStatus {
	s := &oneStatus{world: newWorld(t)}
	s.run = &statusRun{
		statusWriter: &statusWriter{what: "policy", client: s.dynamic, log: slog.New(slog.NewTextHandler(&s.log, nil))},
		queue:        newRetries(), waits: make(map[string]bool), wrote: make(map[string]wantedStatus),
	}
	t.Cleanup(s.run.queue.ShutDown)
	s.create(policyGVR, authorizationPolicy("p", "DENY"))
	return s
}

func (s *oneStatus) policy() *unstructured.Unstructured {
	s.t.Helper()
	p, err := s.dynamic.Resource(policyGVR).Namespace("app").Get(s.t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// put is somebody else's write.
func (s *oneStatus) put(p *unstructured.Unstructured) {
	s.t.Helper()
	if _, err := s.dynamic.Resource(policyGVR).Namespace("app").Update(s.t.Context(), p, metav1.UpdateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// turn is a change of the world: what is due is written.
func (s *oneStatus) turn(p *unstructured.Unstructured, message string) {
	s.t.Helper()
	want := conditionWanted(policyGVR, p, conditionType, condition{true, reasonAccepted, message})
	for _, key := range s.run.take(map[string]wantedStatus{"app/p": want}) {
		if err := s.run.process(s.t.Context(), key); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *oneStatus) count(verb string) (n int) {
	for _, a := range s.dynamic.Actions() {
		if a.GetVerb() == verb {
			n++
		}
	}
	return n
}

const lineOfRestraint = "somebody else writes the status"

// What somebody else writes as often is left alone for a while, told once, and not even
// looked at meanwhile, whatever else changes in the cluster.
func TestLeftAlone(t *testing.T) {
	s := newOneStatus(t)
	theirs := func() {
		p := s.policy()
		if err := unstructured.SetNestedSlice(p.Object, []any{map[string]any{"type": conditionType, "status": "False", "reason": "Theirs"}}, "status", "conditions"); err != nil {
			t.Fatal(err)
		}
		s.put(p)
	}
	p := s.policy()
	for i := range 1 + freeWrites { // the first answers nobody
		s.turn(p, "ours")
		if got := conditionOf(s.world, "p")["message"]; got != "ours" {
			t.Fatalf("write %d: %v", i, got)
		}
		if n := strings.Count(s.log.String(), lineOfRestraint); n != 0 && i < freeWrites {
			t.Fatalf("told after %d", i)
		}
		theirs()
	}
	s.run.restraint.seen["app/p"].next = time.Now().Add(time.Hour) // a machine may be slow
	gets, patches := s.count("get"), s.count("patch")
	for i := range 100 {
		s.turn(p, "ours")
		if i%10 == 0 {
			s.turn(p, fmt.Sprint("ours, changed ", i)) // may be looked at, and is not asked for either
		}
	}
	if g, w := s.count("get")-gets, s.count("patch")-patches; g != 0 || w != 0 {
		t.Errorf("%d GETs and %d PATCHes during the pause", g, w)
	}
	if n := strings.Count(s.log.String(), lineOfRestraint); n != 1 {
		t.Errorf("%d lines:\n%s", n, s.log.String())
	}
}

// What changes is written each time, however often: an edit, and what we have to say.
func TestNobodyElseWrites(t *testing.T) {
	s := newOneStatus(t)
	for i := range 30 {
		p := s.policy()
		p.SetGeneration(int64(i + 2))
		s.put(p)
		s.turn(p, "of an edit")
		if got := observed(conditionOf(s.world, "p")); got != int64(i+2) {
			t.Fatalf("edit %d is not observed: %d\n%s", i, got, s.log.String())
		}
	}
	p := s.policy()
	for i := range 30 {
		message := fmt.Sprint("something else is wrong with it: ", i)
		if s.turn(p, message); conditionOf(s.world, "p")["message"] != message {
			t.Fatalf("change %d is not written\n%s", i, s.log.String())
		}
	}
	if strings.Contains(s.log.String(), lineOfRestraint) {
		t.Error(s.log.String())
	}
}

// A write that fails is tried again by the clock, not by what changes elsewhere.
func TestFailedWriteWaits(t *testing.T) {
	s := newOneStatus(t)
	p := s.policy()
	want := conditionWanted(policyGVR, p, conditionType, condition{true, reasonAccepted, "m"})
	wanted := map[string]wantedStatus{"app/p": want}
	due := func() int { return len(s.run.take(wanted)) }
	if due() != 1 || due() != 0 {
		t.Error("what is in the queue is put there again")
	}
	s.run.again("app/p") // as process does for an error
	if due() != 0 {
		t.Error("a change of something else ends the backoff")
	}
	wanted = map[string]wantedStatus{"app/p": conditionWanted(policyGVR, p, conditionType, condition{false, reasonUnsupported, "n"})}
	if due() != 1 {
		t.Error("a change of this one waits")
	}
	if err := s.run.process(t.Context(), "app/p"); err != nil {
		t.Fatal(err)
	}
	if due() != 1 {
		t.Error("written, and not looked at when it is wanted again")
	}
}
