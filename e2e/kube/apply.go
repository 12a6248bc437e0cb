package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
)

// Objects are what a file of YAML holds.
type Objects []*unstructured.Unstructured

// ParseObjects reads YAML documents.
func ParseObjects(text []byte) (Objects, error) {
	var all Objects
	for dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		o := &unstructured.Unstructured{}
		err := dec.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", len(all)+1, err)
		}
		if len(o.Object) > 0 {
			all = append(all, o)
		}
	}
}

// Of returns the objects of one kind.
func (os Objects) Of(kind string) (found Objects) {
	for _, o := range os {
		if o.GetKind() == kind {
			found = append(found, o)
		}
	}
	return found
}

// Named returns the objects of a kind, or the one that is "kind/name".
func (os Objects) Named(what string) (found Objects) {
	kind, name, one := strings.Cut(what, "/")
	for _, o := range os.Of(kind) {
		if !one || o.GetName() == name {
			found = append(found, o)
		}
	}
	return found
}

// Without returns the objects that others do not have.
func (os Objects) Without(others Objects) Objects {
	key := func(o *unstructured.Unstructured) string {
		return o.GetKind() + "/" + o.GetNamespace() + "/" + o.GetName()
	}
	have := map[string]bool{}
	for _, o := range others {
		have[key(o)] = true
	}
	return slices.DeleteFunc(slices.Clone(os), func(o *unstructured.Unstructured) bool { return have[key(o)] })
}

// AsHelmUninstalls is the order in which helm uninstall deletes: workloads before what
// they may do and who they are. It waits for none.
func (os Objects) AsHelmUninstalls() Objects {
	order := []string{
		"Service", "Deployment", "DaemonSet", "RoleBinding", "Role", "ClusterRoleBinding", "ClusterRole", "CustomResourceDefinition",
		"ConfigMap", "Secret", "ServiceAccount", "PodDisruptionBudget", "ResourceQuota", "NetworkPolicy", "Namespace",
	}
	rank := func(o *unstructured.Unstructured) int {
		if i := slices.Index(order, o.GetKind()); i >= 0 {
			return i
		}
		return len(order) // kinds that it does not know go last
	}
	r := os.Reversed()
	slices.SortStableFunc(r, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	return r
}

// Reversed is the other way round.
func (os Objects) Reversed() Objects {
	r := slices.Clone(os)
	slices.Reverse(r)
	return r
}

// Apply makes the objects so, in order; what needs a kind of another waits for it.
func (c *Cluster) Apply(ctx context.Context, os Objects, dryRun ...string) error {
	var errs []error
	for _, o := range os {
		r, err := c.resource(o)
		if err == nil {
			_, err = r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: "warren-e2e", Force: true, DryRun: dryRun})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("apply %s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err))
		}
	}
	return errors.Join(errs...)
}

// ApplyText is Apply on YAML.
func (c *Cluster) ApplyText(ctx context.Context, text string) error {
	os, err := ParseObjects([]byte(text))
	if err != nil {
		return err
	}
	return c.Apply(ctx, os)
}

// Delete removes the objects and waits for none; what is gone already is gone.
func (c *Cluster) Delete(ctx context.Context, os Objects) error {
	return c.remove(ctx, os, metav1.DeletePropagationForeground)
}

// DeleteNow is Delete as kubectl and helm do it: the objects are gone at once, and what
// they own follows.
func (c *Cluster) DeleteNow(ctx context.Context, os Objects) error {
	return c.remove(ctx, os, metav1.DeletePropagationBackground)
}

func (c *Cluster) remove(ctx context.Context, os Objects, how metav1.DeletionPropagation) error {
	var errs []error
	for _, o := range os {
		r, err := c.resource(o)
		if err == nil {
			err = r.Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &how})
		}
		if err != nil && !apierrors.IsNotFound(err) && !meta.IsNoMatchError(err) {
			errs = append(errs, fmt.Errorf("delete %s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err))
		}
	}
	return errors.Join(errs...)
}

// Gone reports whether none of the objects is left.
func (c *Cluster) Gone(ctx context.Context, os Objects) error {
	for _, o := range os {
		r, err := c.resource(o)
		if meta.IsNoMatchError(err) {
			continue
		}
		if err == nil {
			_, err = r.Get(ctx, o.GetName(), metav1.GetOptions{})
		}
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return err
		default:
			return fmt.Errorf("%s %s/%s is still there", o.GetKind(), o.GetNamespace(), o.GetName())
		}
	}
	return nil
}

// resource asks the API server what there is each time: CRDs come and go.
func (c *Cluster) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := o.GroupVersionKind()
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.Discovery()))
	m, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return nil, err
	}
	if m.Scope.Name() == meta.RESTScopeNameRoot {
		return c.dyn.Resource(m.Resource), nil
	}
	ns := o.GetNamespace()
	if ns == "" {
		return nil, fmt.Errorf("%s %s has no namespace", strings.ToLower(o.GetKind()), o.GetName())
	}
	return c.dyn.Resource(m.Resource).Namespace(ns), nil
}
