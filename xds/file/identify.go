package file

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// identify checks the names that an API server would have checked, since they end
// up in workload UIDs, hostnames and SPIFFE IDs, and puts a namespaced object
// without one into "default", as kubectl does.
func identify(kind string, obj metav1.Object) (key, error) {
	namespaced := kind != "Namespace" && kind != "Node" && kind != "GatewayClass"
	if namespaced && obj.GetNamespace() == "" {
		obj.SetNamespace(metav1.NamespaceDefault)
	}
	k := key{kind: kind, namespace: obj.GetNamespace(), name: obj.GetName()}
	type name struct {
		field, value string
		rule         func(string) []string
		optional     bool
	}
	names := []name{{field: "metadata.name", value: k.name, rule: validation.IsDNS1123Subdomain}}
	switch {
	case kind == "Namespace" || kind == "Service":
		names[0].rule = validation.IsDNS1123Label
	case kind == "Pod":
		spec := obj.(*corev1.Pod).Spec
		names = append(names,
			name{field: "spec.serviceAccountName", value: spec.ServiceAccountName, rule: validation.IsDNS1123Subdomain, optional: true},
			name{field: "spec.nodeName", value: spec.NodeName, rule: validation.IsDNS1123Subdomain, optional: true})
	}
	if namespaced {
		names = append(names, name{field: "metadata.namespace", value: k.namespace, rule: validation.IsDNS1123Label})
	} else if k.namespace != "" {
		return key{}, fmt.Errorf("%s: metadata.namespace: a %s has none", k, kind)
	}
	for _, n := range names {
		if bad := n.rule(n.value); len(bad) > 0 && !(n.optional && n.value == "") {
			return key{}, fmt.Errorf("%s: %s: %q: %s", k, n.field, n.value, strings.Join(bad, "; "))
		}
	}
	return k, nil
}
