package controlplane

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/workqueue"

	"github.com/warren-mesh/warren/xds/kube"
	"github.com/warren-mesh/warren/xds/translate"
)

// The condition that says what the proxies of the nodes make of a policy, as istiod
// writes it.
const (
	conditionType     = "ZtunnelAccepted"
	reasonAccepted    = "Accepted"
	reasonUnsupported = "UnsupportedValue"
	messageAccepted   = "attached to ztunnel"
)

const (
	policyKind     = "AuthorizationPolicy"
	policyResource = "authorizationpolicies"
	maxMessage     = 1024
	statusWriters  = 4
)

// condition is what a policy's status should say; the zero value is nothing.
type condition struct {
	accepted        bool
	reason, message string
}

// policyStatus keeps the status of AuthorizationPolicies.
type policyStatus struct {
	client   dynamic.Interface
	model    *model
	problems func() []kube.Problem // with what was read
	log      *slog.Logger
	writes   counts

	restraint restraint
}

// statusRun is a policyStatus at work.
type statusRun struct {
	*policyStatus
	queue workqueue.TypedRateLimitingInterface[string]

	mu     sync.Mutex
	wanted map[string]wantedStatus // by namespace/name; those that are not as they should be
}

type wantedStatus struct {
	resource   schema.GroupVersionResource
	generation int64 // of the policy that the condition is about
	condition
}

// run writes until ctx ends.
func (s *policyStatus) run(ctx context.Context) {
	run := &statusRun{policyStatus: s, queue: newRetries()}
	work(ctx, run.queue, statusWriters, run.follow, run.process)
}

// follow compares every policy with what became of it.
func (s *statusRun) follow(ctx context.Context) {
	for {
		objects, result, changed := s.model.policies()
		wanted := make(map[string]wantedStatus)
		conditions := conditionsOf(objects, result, s.problems())
		for _, p := range objects.AuthorizationPolicies {
			name := p.Namespace + "/" + p.Name
			if c := conditions[name]; !said(p, c) {
				gv, err := schema.ParseGroupVersion(p.APIVersion)
				if err != nil {
					continue // it came from an API server, which knows its own versions
				}
				wanted[name] = wantedStatus{gv.WithResource(policyResource), p.Generation, c}
			}
		}
		s.mu.Lock()
		s.wanted = wanted
		s.mu.Unlock()
		for name := range wanted {
			s.queue.Add(name)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// conditionsOf says of every policy what became of it, by namespace/name. Policies for
// waypoints are not ours to judge.
func conditionsOf(objects translate.Objects, result translate.Result, unread []kube.Problem) map[string]condition {
	problems := make(map[string][]string)
	for _, p := range unread {
		if p.Kind == policyKind && p.Name != "" {
			problems[p.Namespace+"/"+p.Name] = append(problems[p.Namespace+"/"+p.Name], p.Reason)
		}
	}
	for _, p := range result.Problems {
		if p.Kind == policyKind {
			problems[p.Namespace+"/"+p.Name] = append(problems[p.Namespace+"/"+p.Name], strings.TrimPrefix(p.Field+": "+p.Reason, ": "))
		}
	}
	sent := make(map[string]bool, len(result.Policies))
	for _, p := range result.Policies {
		sent[p.Namespace+"/"+p.Name] = true
	}
	out := make(map[string]condition, len(objects.AuthorizationPolicies))
	for _, p := range objects.AuthorizationPolicies {
		name := p.Namespace + "/" + p.Name
		//nolint:staticcheck // targetRef is deprecated in favour of targetRefs, and still in use
		if p.Spec.GetTargetRef() != nil || len(p.Spec.GetTargetRefs()) > 0 {
			continue
		}
		c := condition{accepted: sent[name], reason: reasonUnsupported, message: joined(problems[name])}
		switch {
		case c.accepted && c.message == "":
			c.reason, c.message = reasonAccepted, messageAccepted
		case c.message == "":
			c.message = "not enforced: the policy is only to be logged (istio.io/dry-run), which this control plane is not set to send"
		}
		out[name] = c
	}
	return out
}

// joined is one message of many reasons.
func joined(reasons []string) string {
	text := strings.Join(slices.Compact(reasons), "; ")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage-4], "") + " ..."
	}
	return text
}

// said reports whether a policy's status says it already.
func said(p *securityv1.AuthorizationPolicy, want condition) bool {
	for _, c := range p.Status.GetConditions() {
		if c.GetType() == conditionType {
			return want != condition{} && c.GetObservedGeneration() == p.Generation && c.GetReason() == want.reason &&
				c.GetMessage() == want.message && c.GetStatus() == statusText(want.accepted)
		}
	}
	return want == condition{}
}

func statusText(yes bool) string {
	if yes {
		return string(metav1.ConditionTrue)
	}
	return string(metav1.ConditionFalse)
}

// process writes one policy's status.
func (s *statusRun) process(ctx context.Context, name string) error {
	s.mu.Lock()
	want, ok := s.wanted[name]
	s.mu.Unlock()
	if !ok {
		return nil
	}
	wrote, err := s.write(ctx, name, want)
	switch {
	case apierrors.IsNotFound(err):
		s.restraint.forget(name) // it is gone, or its kind is
		return nil
	case apierrors.IsConflict(err):
		return err // somebody changed it: again
	case err != nil && ctx.Err() == nil:
		s.writes.failedWith(ctx, s.log, "cannot write the status of a policy", "policy", name, "err", err)
	case wrote:
		s.restraint.wrote(name, time.Now())
		s.writes.succeeded()
	}
	return err
}

// write puts our condition beside those of others, unless it is there.
func (s *statusRun) write(ctx context.Context, policy string, want wantedStatus) (wrote bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	namespace, name, _ := strings.Cut(policy, "/")
	client := s.client.Resource(want.resource).Namespace(namespace)
	now, err := client.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	conditions, changed := withCondition(now, want.condition, time.Now())
	if !changed || now.GetGeneration() != want.generation { // news of the latter is on its way
		return false, nil
	}
	if wait := s.restraint.wait(policy, time.Now()); wait > 0 {
		s.log.Warn("somebody else writes the status of a policy, too: it is left as it is for a while", "policy", policy, "for", wait)
		s.queue.AddAfter(policy, wait)
		return false, nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": now.GetResourceVersion()}, // a conflict, if it changes meanwhile
		"status":   map[string]any{"conditions": conditions},
	})
	if err != nil {
		return false, err
	}
	_, err = client.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}, "status")
	return err == nil, err
}

// withCondition returns the conditions of an object with ours as wanted.
func withCondition(o *unstructured.Unstructured, want condition, now time.Time) (conditions []any, changed bool) {
	list, _, err := unstructured.NestedSlice(o.Object, "status", "conditions")
	if err != nil {
		list = nil // what is no list is nobody's
	}
	generation := fmt.Sprint(o.GetGeneration())
	conditions = []any{}
	found := false
	since := now.UTC().Format(time.RFC3339)
	for _, entry := range list {
		c, ok := entry.(map[string]any)
		if !ok || c["type"] != conditionType {
			conditions = append(conditions, entry)
			continue
		}
		found = true
		if c["status"] == statusText(want.accepted) {
			if at, ok := c["lastTransitionTime"].(string); ok {
				since = cmp.Or(at, since)
			}
			if c["reason"] == want.reason && c["message"] == want.message && fmt.Sprint(c["observedGeneration"]) == generation {
				return nil, false
			}
		}
	}
	if want == (condition{}) {
		return conditions, found
	}
	return append(conditions, map[string]any{
		"type": conditionType, "status": statusText(want.accepted), "reason": want.reason, "message": want.message,
		"lastTransitionTime": since, "observedGeneration": generation,
	}), true
}
