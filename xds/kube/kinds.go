package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/warren-mesh/warren/xds/translate"
)

// kind is one kind of objects that is followed.
type kind interface {
	// run follows it until ctx ends.
	run(ctx context.Context)
	// fill puts the objects where they belong.
	fill(to *translate.Objects)
	status(now time.Time) Status
	// complaints returns what is wrong with single objects.
	complaints() []Problem
}

// builtin is a kind that every API server has.
type builtin[T metav1.Object] struct {
	*table[T]
	contact *contact
	source  source
	put     func(*translate.Objects, []T)
}

// The keep of a built-in kind never fails and can be used as a transformation.
func (b *builtin[T]) run(ctx context.Context) {
	into := prunedStore{heardStore{b.table, b.contact}, func(obj any) (any, error) {
		raw, ok := obj.(metav1.Object)
		if !ok {
			return obj, nil
		}
		return b.keep(raw)
	}}
	for {
		if err := follow(ctx, b.source, into, b.contact); err == nil {
			return
		} else {
			b.contact.broken(fmt.Errorf("%w: is this an API server?", err))
		}
		if !sleep(ctx, lastRetry) {
			return
		}
	}
}

func (b *builtin[T]) fill(to *translate.Objects) { b.put(to, b.all()) }

func (b *builtin[T]) status(now time.Time) Status {
	s := b.contact.status(now)
	s.Objects, s.Synced = b.count()
	return s
}

func (b *builtin[T]) complaints() []Problem { return b.table.complaints(b.contact.kind) }

// client lists and watches objects of one kind.
type client[L runtime.Object] interface {
	List(ctx context.Context, o metav1.ListOptions) (L, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// addBuiltin makes the feeder follow a kind. narrow, which may be nil, asks for fewer objects.
func addBuiltin[T interface {
	metav1.Object
	runtime.Object
}, L runtime.Object](f *Feeder, name string, of T, c client[L], narrow func(*metav1.ListOptions),
	prune func(T) T, same func(a, b T) bool, put func(*translate.Objects, []T),
) {
	if narrow == nil {
		narrow = func(*metav1.ListOptions) {}
	}
	keep := func(raw metav1.Object) (T, error) {
		obj, ok := raw.(T)
		if !ok {
			return obj, fmt.Errorf("an object of type %T", raw)
		}
		return prune(obj), nil
	}
	f.kinds = append(f.kinds, &builtin[T]{
		table:   newTable(keep, same, f.touch),
		contact: f.contact(name),
		put:     put,
		source: source{
			client: f.client, of: of,
			list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				narrow(&o)
				return c.List(ctx, o)
			},
			watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				narrow(&o)
				return c.Watch(ctx, o)
			},
		},
	})
}

// What is asked for of pods and of EndpointSlices. A pod that has finished is neither
// served nor signed for. The slices that Kubernetes makes of a Service's selector name
// the pods that the selector finds, and there are as many of them again.
const (
	unfinished  = "status.phase!=Succeeded,status.phase!=Failed"
	notSelected = discoveryv1.LabelManagedBy + "!=endpointslice-controller.k8s.io"
)

// addNode adds what the agent of a node needs.
func (f *Feeder) addNode(c kubernetes.Interface, node string) {
	addBuiltin(f, "Pod", &corev1.Pod{}, c.CoreV1().Pods(""), func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node).String()
	},
		func(p *corev1.Pod) *corev1.Pod { return podOf(p, true) }, samePod,
		func(to *translate.Objects, l []*corev1.Pod) { to.Pods = l })
	f.addNamespaces(c)
}

func (f *Feeder) addNamespaces(c kubernetes.Interface) {
	addBuiltin(f, "Namespace", &corev1.Namespace{}, c.CoreV1().Namespaces(), nil, namespaceOf, sameNamespace,
		func(to *translate.Objects, l []*corev1.Namespace) { to.Namespaces = l })
}

// addCluster adds what every cluster has.
func (f *Feeder) addCluster(c kubernetes.Interface) {
	alike := newSiblings()
	addBuiltin(f, "Pod", &corev1.Pod{}, c.CoreV1().Pods(""), func(o *metav1.ListOptions) { o.FieldSelector = unfinished },
		func(p *corev1.Pod) *corev1.Pod { return alike.share(podOf(p, false)) }, samePod,
		func(to *translate.Objects, l []*corev1.Pod) { to.Pods = l })
	f.addNamespaces(c)
	addBuiltin(f, "Service", &corev1.Service{}, c.CoreV1().Services(""), nil, serviceOf, sameService,
		func(to *translate.Objects, l []*corev1.Service) { to.Services = l })
	addBuiltin(f, "EndpointSlice", &discoveryv1.EndpointSlice{}, c.DiscoveryV1().EndpointSlices(""), func(o *metav1.ListOptions) { o.LabelSelector = notSelected },
		sliceOf, sameSlice,
		func(to *translate.Objects, l []*discoveryv1.EndpointSlice) { to.EndpointSlices = l })
	addBuiltin(f, "Node", &corev1.Node{}, c.CoreV1().Nodes(), nil, nodeOf, sameNode,
		func(to *translate.Objects, l []*corev1.Node) { to.Nodes = l })
}

var errNoClient = errors.New("kube: neither a REST configuration nor clients")
