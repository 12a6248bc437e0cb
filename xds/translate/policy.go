package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	apisecurity "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

// annotationDryRun asks that a policy is only logged.
const annotationDryRun = "istio.io/dry-run"

// policyIndex holds the policies that name workloads by label.
type policyIndex struct {
	root        string
	byNamespace map[string][]selectorPolicy
}

type selectorPolicy struct {
	name   string // namespace/name
	labels map[string]string
}

// selecting returns the policies that select what has these labels in a namespace, sorted
// by name: those of that namespace and of the root namespace. Nothing is selected by its
// having no labels.
func (x *policyIndex) selecting(namespace string, labels map[string]string) []string {
	var out []string
	from := []string{namespace}
	if x.root != namespace {
		from = append(from, x.root)
	}
	for _, ns := range from {
		for _, p := range x.byNamespace[ns] {
			if subset(p.labels, labels) {
				out = append(out, p.name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// subset reports whether labels has everything that want has.
func subset(want, labels map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// authorizations translates the AuthorizationPolicies that proxies enforce and indexes
// those that select pods.
func (b *builder) authorizations(list []*securityv1.AuthorizationPolicy) []*workload.Policy {
	var out []*workload.Policy
	b.policies = &policyIndex{root: b.opts.RootNamespace, byNamespace: make(map[string][]selectorPolicy)}
	for _, p := range sorted(list) {
		a := b.authorization(p)
		if a == nil {
			continue
		}
		out = append(out, a)
		if a.Scope == workload.ScopeSelector {
			b.policies.byNamespace[p.Namespace] = append(b.policies.byNamespace[p.Namespace],
				selectorPolicy{name: p.Namespace + "/" + p.Name, labels: p.Spec.GetSelector().GetMatchLabels()})
		}
	}
	return out
}

// authorization translates one policy; nil is one that is not for the proxies.
func (b *builder) authorization(p *securityv1.AuthorizationPolicy) *workload.Policy {
	report := b.reporter("AuthorizationPolicy", p.Namespace, p.Name)
	//nolint:staticcheck // targetRef is deprecated in favour of targetRefs, and still in use
	if p.Spec.GetTargetRef() != nil || len(p.Spec.GetTargetRefs()) > 0 {
		return nil // for waypoints
	}
	a := &workload.Policy{Name: p.Name, Namespace: p.Namespace, Scope: b.scope(p)}
	switch p.Spec.GetAction() {
	case apisecurity.AuthorizationPolicy_ALLOW:
		a.Action = workload.Allow
	case apisecurity.AuthorizationPolicy_DENY:
		a.Action = workload.Deny
	default:
		report("spec.action", fmt.Sprintf("the proxy does not support the %s action: the policy has no effect", p.Spec.GetAction()))
		return nil
	}
	if v, ok := p.Annotations[annotationDryRun]; ok {
		dryRun, err := strconv.ParseBool(v)
		if err != nil {
			report("metadata.annotations", fmt.Sprintf("%s: %q is neither true nor false: the policy is enforced", annotationDryRun, v))
		}
		if dryRun && !b.opts.DryRunPolicies {
			return nil
		}
		a.DryRun = dryRun
	}
	r := &ruleReader{namespace: p.Namespace, deny: a.Action == workload.Deny, report: report}
	a.Rules = r.rules(p.Spec.GetRules())
	return a
}

func (b *builder) scope(p *securityv1.AuthorizationPolicy) workload.PolicyScope {
	switch {
	case len(p.Spec.GetSelector().GetMatchLabels()) > 0:
		return workload.ScopeSelector
	case p.Namespace == b.opts.RootNamespace:
		return workload.ScopeGlobal
	default:
		return workload.ScopeNamespace
	}
}

// named is an object under a name.
type named interface {
	GetNamespace() string
	GetName() string
}

// sorted returns a copy of a list in the order of names, so that the result does not
// depend on the order of the input.
func sorted[T named](list []T) []T {
	return slices.SortedFunc(slices.Values(list), func(a, b T) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
}
