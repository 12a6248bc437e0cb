package kube

import (
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Kinds of other projects that the mesh reads where they exist. The definitions made
// here take any content, for clusters that have none.
var foreignKinds = []struct {
	group, kind, plural string
	versions            []string // the first is stored
}{
	{"security.istio.io", "AuthorizationPolicy", "authorizationpolicies", []string{"v1", "v1beta1"}},
	{"security.istio.io", "PeerAuthentication", "peerauthentications", []string{"v1", "v1beta1"}},
	{"networking.istio.io", "ServiceEntry", "serviceentries", []string{"v1", "v1beta1"}},
	{"networking.istio.io", "WorkloadEntry", "workloadentries", []string{"v1", "v1beta1"}},
	{"monitoring.coreos.com", "PodMonitor", "podmonitors", []string{"v1"}}, // which the chart can make
}

// ForeignKinds defines the kinds of Istio's that the cluster lacks. A cluster that
// has them keeps its own.
func (c *Cluster) ForeignKinds(ctx context.Context) error {
	crds := c.dyn.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	for _, k := range foreignKinds {
		name := k.plural + "." + k.group
		if _, err := crds.Get(ctx, name, metav1.GetOptions{}); err != nil {
			if _, err = crds.Create(ctx, definition(name, k.group, k.kind, k.plural, k.versions), metav1.CreateOptions{}); err != nil {
				return fmt.Errorf("CustomResourceDefinition %s: %w", name, err)
			}
		}
		served := schema.GroupVersionResource{Group: k.group, Version: k.versions[0], Resource: k.plural}
		err := Until(ctx, time.Minute, name+" is served", func(ctx context.Context) error {
			_, err := c.dyn.Resource(served).List(ctx, metav1.ListOptions{Limit: 1})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func definition(name, group, kind, plural string, versions []string) *unstructured.Unstructured {
	var vs []any
	for i, v := range versions {
		vs = append(vs, map[string]any{
			"name": v, "served": true, "storage": i == 0,
			"subresources": map[string]any{"status": map[string]any{}},
			"schema":       map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
		})
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"group": group, "scope": "Namespaced", "versions": vs,
			"names": map[string]any{"kind": kind, "plural": plural, "singular": strings.ToLower(kind), "listKind": kind + "List"},
		},
	}}
}
