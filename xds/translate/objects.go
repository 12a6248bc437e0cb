package translate

import (
	"fmt"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/warren-mesh/warren/xds/workload"
)

// Objects is everything the model is made from. The objects are shared and
// never changed by this package; callers must not change them either.
type Objects struct {
	Pods                  []*corev1.Pod
	Namespaces            []*corev1.Namespace
	Services              []*corev1.Service
	EndpointSlices        []*discoveryv1.EndpointSlice
	Nodes                 []*corev1.Node
	AuthorizationPolicies []*securityv1.AuthorizationPolicy
	PeerAuthentications   []*securityv1.PeerAuthentication
	ServiceEntries        []*networkingv1.ServiceEntry
	WorkloadEntries       []*networkingv1.WorkloadEntry
	Gateways              []*gatewayv1.Gateway
	GatewayClasses        []*gatewayv1.GatewayClass
}

// Options says in which mesh the objects live.
type Options struct {
	// ClusterID is the first part of every workload UID. Empty means "Kubernetes".
	ClusterID string
	// TrustDomain of every identity. Empty means "cluster.local".
	TrustDomain string
	// Domain is the DNS suffix of services. Empty means "cluster.local".
	Domain string
	// RootNamespace holds policies for the whole mesh. Empty means "istio-system".
	RootNamespace string
	// Network is the network of every address. Empty is the default network; the
	// label topology.istio.io/network on the root namespace, if any, wins.
	Network string
	// AssumeRedirected takes every eligible pod as one that the node agent has
	// redirected. It is for feeders to which no agent can write its annotation
	// (a folder of files); with an API server the annotation decides.
	AssumeRedirected bool
	// Selectors says which pods are in the mesh; the zero value is the default.
	Selectors Selectors
	// DryRunPolicies sends policies with the annotation istio.io/dry-run to the
	// proxies, which log what they would do; else such policies are left out.
	DryRunPolicies bool
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		field *string
		value string
	}{
		{&o.ClusterID, workload.DefaultCluster},
		{&o.TrustDomain, workload.DefaultTrustDomain},
		{&o.Domain, "cluster.local"},
		{&o.RootNamespace, "istio-system"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	return o
}

// Problem is one thing that could not be translated, or not literally.
type Problem struct {
	Kind, Namespace, Name string // the object
	Field                 string // path inside it, such as spec.rules[0].from[1].source.ipBlocks[0]
	Reason                string // what is wrong and what was done instead
}

// String is one line for a log: kind namespace/name: field: reason.
func (p Problem) String() string {
	parts := make([]string, 0, 3)
	parts = append(parts, fmt.Sprintf("%s %s", p.Kind, objectName(p.Namespace, p.Name)))
	if p.Field != "" {
		parts = append(parts, p.Field)
	}
	return strings.Join(append(parts, p.Reason), ": ")
}

func objectName(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}
