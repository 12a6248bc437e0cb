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
	foreground := metav1.DeletePropagationForeground
	var errs []error
	for _, o := range os {
		r, err := c.resource(o)
		if err == nil {
			err = r.Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &foreground})
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
