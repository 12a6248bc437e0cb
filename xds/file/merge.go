package file

import (
	"fmt"
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/warren-mesh/warren/xds/translate"
)

// merge puts the objects of all files together, in the order of file names. Of an
// object in two files the first counts and the second is reported.
func merge(files map[string]*fileState) (translate.Objects, []Problem) {
	var objects translate.Objects
	var problems []Problem
	owner := make(map[key]string)
	for _, name := range sortedNames(files) {
		f := files[name]
		if f.bad != "" {
			problems = append(problems, Problem{File: name, Reason: f.bad})
		}
		for _, o := range f.objects {
			if first, dup := owner[o.key]; dup {
				problems = append(problems, Problem{File: name, Object: o.key.String(), Reason: fmt.Sprintf("also in %s, which counts", first)})
				continue
			}
			owner[o.key] = name
			add(&objects, o)
		}
	}
	return objects, problems
}

func sortedNames(files map[string]*fileState) []string {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func add(to *translate.Objects, o object) {
	switch obj := o.obj.(type) {
	case *corev1.Pod:
		to.Pods = append(to.Pods, obj)
	case *corev1.Namespace:
		to.Namespaces = append(to.Namespaces, obj)
	case *corev1.Service:
		to.Services = append(to.Services, obj)
	case *corev1.Node:
		to.Nodes = append(to.Nodes, obj)
	case *discoveryv1.EndpointSlice:
		to.EndpointSlices = append(to.EndpointSlices, obj)
	case *securityv1.AuthorizationPolicy:
		to.AuthorizationPolicies = append(to.AuthorizationPolicies, obj)
	case *securityv1.PeerAuthentication:
		to.PeerAuthentications = append(to.PeerAuthentications, obj)
	case *networkingv1.ServiceEntry:
		to.ServiceEntries = append(to.ServiceEntries, obj)
	case *networkingv1.WorkloadEntry:
		to.WorkloadEntries = append(to.WorkloadEntries, obj)
	case *gatewayv1.Gateway:
		to.Gateways = append(to.Gateways, obj)
	case *gatewayv1.GatewayClass:
		to.GatewayClasses = append(to.GatewayClasses, obj)
	}
}
