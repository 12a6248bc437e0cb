package controlplane

import (
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/warren-mesh/warren/xds/translate"
)

// conditionBound says whether what a Service's or ServiceEntry's label asks for, traffic
// through a waypoint, is so; istiod writes it under the same name.
const conditionBound = "istio.io/WaypointBound"

const (
	serviceKind   = "Service"
	entryKind     = "ServiceEntry"
	entryResource = "serviceentries"
)

// waypointStatus keeps that condition.
func waypointStatus(client dynamic.Interface, m *model, log *slog.Logger) *statusWriter {
	return &statusWriter{what: "waypoint", client: client, log: log, wanted: func() (map[string]wantedStatus, <-chan struct{}) {
		objects, result, changed := m.policies()
		return bindingsUntold(objects, result), changed
	}}
}

// bindingsUntold compares Services and ServiceEntries with what became of their bindings.
func bindingsUntold(objects translate.Objects, result translate.Result) map[string]wantedStatus {
	conditions := make(map[string]condition, len(result.Bindings))
	for _, b := range result.Bindings {
		conditions[b.Kind+" "+b.Namespace+"/"+b.Name] = condition{b.Bound, b.Reason, joined([]string{b.Message})}
	}
	out := make(map[string]wantedStatus)
	services := schema.GroupVersionResource{Version: "v1", Resource: "services"}
	for _, s := range objects.Services {
		key := serviceKind + " " + s.Namespace + "/" + s.Name
		if want := conditions[key]; !serviceSays(s, want) {
			out[key] = conditionWanted(services, s, conditionBound, want)
		}
	}
	for _, e := range objects.ServiceEntries {
		key := entryKind + " " + e.Namespace + "/" + e.Name
		want := conditions[key]
		gv, err := schema.ParseGroupVersion(e.APIVersion)
		if err != nil || said(e.Status.GetConditions(), conditionBound, e.Generation, want) {
			continue
		}
		out[key] = conditionWanted(gv.WithResource(entryResource), e, conditionBound, want)
	}
	return out
}

// serviceSays reports whether a Service's status says it already.
func serviceSays(s *corev1.Service, want condition) bool {
	for _, c := range s.Status.Conditions {
		if c.Type == conditionBound {
			return want != condition{} && c.ObservedGeneration == s.Generation && c.Reason == want.reason && c.Message == want.message &&
				c.Status == metav1.ConditionStatus(statusText(want.accepted))
		}
	}
	return want == condition{}
}
