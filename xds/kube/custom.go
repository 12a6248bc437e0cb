package kube

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"

	"github.com/warren-mesh/warren/xds/translate"
)

const (
	// poll is how often a kind that is not there is asked for.
	poll = 5 * time.Second
	// goneAfter is how many times in a row a kind must not be there before its objects
	// are dropped: policies are among them, and an API server that starts may know less
	// than it will.
	goneAfter = 3
	// discoverWithin bounds one question about what there is.
	discoverWithin = 30 * time.Second
)

// custom is a kind that is there when somebody defined it.
type custom[T metav1.Object] struct {
	*table[T]
	contact *contact
	put     func(*translate.Objects, []T)

	group, resource, name string
	versions              []string // the same by another name, best first
	served                func(ctx context.Context, gv schema.GroupVersion) ([]string, error)
	client                dynamic.Interface
	poll                  time.Duration
}

// run asks for the kind, follows it while it is there, and asks again.
func (c *custom[T]) run(ctx context.Context) {
	missed := 0
	for {
		gvr, err := c.find(ctx)
		switch {
		case err != nil:
			c.contact.broken(err)
		case gvr.Empty():
			if missed++; missed >= goneAfter || c.empty() {
				c.contact.exists(false)
				_ = c.Replace(nil, "") // takes nothing that it could refuse
			}
			c.contact.whole(time.Now())
		default:
			missed = 0
			c.contact.exists(true)
			if err := follow(ctx, c.source(gvr), heardStore{c.table, c.contact}, c.contact); err == nil {
				return
			}
		}
		if !sleep(ctx, c.poll) {
			return
		}
	}
}

func (c *custom[T]) empty() bool {
	n, _ := c.count()
	return n == 0
}

// find returns the best version of the kind that is served, none for a kind that is not there.
func (c *custom[T]) find(ctx context.Context) (schema.GroupVersionResource, error) {
	for _, v := range c.versions {
		gv := schema.GroupVersion{Group: c.group, Version: v}
		names, err := c.served(ctx, gv)
		if err != nil {
			return schema.GroupVersionResource{}, fmt.Errorf("what there is in %s: %w", gv, err)
		}
		if slices.Contains(names, c.resource) {
			return gv.WithResource(c.resource), nil
		}
	}
	return schema.GroupVersionResource{}, nil
}

// plainLists is a client that streams no lists: of these kinds there are few objects.
type plainLists struct{}

// IsWatchListSemanticsUnSupported is asked by client-go.
func (plainLists) IsWatchListSemanticsUnSupported() bool { return true }

func (c *custom[T]) source(gvr schema.GroupVersionResource) source {
	of := &unstructured.Unstructured{}
	of.SetGroupVersionKind(gvr.GroupVersion().WithKind(c.name))
	return source{
		client: plainLists{}, of: of,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return c.client.Resource(gvr).List(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.client.Resource(gvr).Watch(ctx, o)
		},
	}
}

func (c *custom[T]) fill(to *translate.Objects) { c.put(to, c.all()) }

func (c *custom[T]) status(now time.Time) Status {
	s := c.contact.status(now)
	s.Objects, s.Synced = c.count()
	return s
}

func (c *custom[T]) complaints() []Problem { return c.table.complaints(c.contact.kind) }

// served lists the resources of a group's version, none for one that is not there.
func served(d discovery.DiscoveryInterface) func(context.Context, schema.GroupVersion) ([]string, error) {
	return func(ctx context.Context, gv schema.GroupVersion) ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, discoverWithin)
		defer cancel()
		list, err := resources(ctx, d, gv)
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		names := make([]string, 0, len(list.APIResources))
		for _, r := range list.APIResources {
			names = append(names, r.Name)
		}
		return names, nil
	}
}

// resources asks with a context, which DiscoveryInterface does not take; client-go's
// fake has nothing that does.
func resources(ctx context.Context, d discovery.DiscoveryInterface, gv schema.GroupVersion) (*metav1.APIResourceList, error) {
	rest := d.RESTClient()
	if rest == nil {
		return d.ServerResourcesForGroupVersion(gv.String())
	}
	list := &metav1.APIResourceList{}
	return list, rest.Get().AbsPath("/apis", gv.Group, gv.Version).Do(ctx).Into(list)
}
