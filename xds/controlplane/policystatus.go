package controlplane

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	metav1alpha1 "istio.io/api/meta/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

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
)

// policyStatus keeps the status of AuthorizationPolicies.
func policyStatus(client dynamic.Interface, m *model, problems func() []kube.Problem, log *slog.Logger) *statusWriter {
	return &statusWriter{what: "policy", client: client, log: log, wanted: func() (map[string]wantedStatus, <-chan struct{}) {
		objects, result, changed := m.policies()
		return policiesUntold(objects, result, problems()), changed
	}}
}

// policiesUntold compares every policy with what became of it.
func policiesUntold(objects translate.Objects, result translate.Result, problems []kube.Problem) map[string]wantedStatus {
	out := make(map[string]wantedStatus)
	conditions := conditionsOf(objects, result, problems)
	for _, p := range objects.AuthorizationPolicies {
		name := p.Namespace + "/" + p.Name
		want := conditions[name]
		gv, err := schema.ParseGroupVersion(p.APIVersion)
		if err != nil || said(p.Status.GetConditions(), conditionType, p.Generation, want) {
			continue // it came from an API server, which knows its own versions
		}
		out[name] = conditionWanted(gv.WithResource(policyResource), p, conditionType, want)
	}
	return out
}

// conditionWanted is an object whose status is to say something.
func conditionWanted(resource schema.GroupVersionResource, o metav1.Object, kind string, want condition) wantedStatus {
	change := func(now *unstructured.Unstructured) (map[string]any, bool) {
		conditions, changed := withCondition(now, kind, want, time.Now())
		return map[string]any{"conditions": conditions}, changed
	}
	return wantedStatus{
		resource: resource, namespace: o.GetNamespace(), name: o.GetName(), generation: o.GetGeneration(), change: change,
		says: func(now *unstructured.Unstructured) bool { _, changed := change(now); return !changed },
		mark: fmt.Sprintf("%s %+v", kind, want),
	}
}

// conditionsOf says of every policy what became of it, by namespace/name. Policies for
// waypoints are not ours to judge.
func conditionsOf(objects translate.Objects, result translate.Result, unread []kube.Problem) map[string]condition {
	problems := make(map[string][]string)
	refused := make(map[string]bool)
	for _, p := range unread {
		if p.Kind == policyKind && p.Name != "" {
			refused[p.Namespace+"/"+p.Name] = p.Unread
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
		c := condition{accepted: sent[name] && !refused[name], reason: reasonUnsupported, message: joined(slices.Compact(problems[name]))}
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

// said reports whether the status of one of Istio's objects says it already.
func said(conditions []*metav1alpha1.IstioCondition, kind string, generation int64, want condition) bool {
	for _, c := range conditions {
		if c.GetType() == kind {
			return want != condition{} && c.GetObservedGeneration() == generation && c.GetReason() == want.reason &&
				c.GetMessage() == want.message && c.GetStatus() == statusText(want.accepted)
		}
	}
	return want == condition{}
}
