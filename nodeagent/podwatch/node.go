package podwatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Taints removes taints of a node that kept pods away until this agent was ready.
type Taints struct {
	Client kubernetes.Interface
	Node   string
	Keys   []string
	Ready  func(context.Context) error // nil: the agent can take pods
	Log    *slog.Logger
}

const (
	taintPoll = time.Second
	taintIdle = 30 * time.Second // the kubelet may register its node anew
)

// Run removes them whenever they are there and the agent is ready, until ctx ends;
// it returns nil then.
func (t Taints) Run(ctx context.Context) error {
	failed := false
	for {
		wait := taintPoll
		if t.Ready(ctx) == nil {
			removed, err := t.remove(ctx)
			switch {
			case err == nil:
				wait = taintIdle
			case !failed:
				t.Log.Warn("cannot remove the node's taints", "node", t.Node, "taints", t.Keys, "err", err)
			}
			failed = err != nil
			if len(removed) > 0 {
				t.Log.Info("the node takes pods now", "node", t.Node, "taints removed", removed)
			}
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// remove takes the taints away that are there.
func (t Taints) remove(ctx context.Context) (removed []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	node, err := t.Client.CoreV1().Nodes().Get(ctx, t.Node, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	kept := []corev1.Taint{}
	for _, taint := range node.Spec.Taints {
		if slices.Contains(t.Keys, taint.Key) {
			removed = append(removed, taint.ToString())
			continue
		}
		kept = append(kept, taint)
	}
	if len(removed) == 0 {
		return nil, nil
	}
	// The version makes it a conflict when somebody has changed the node since.
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": node.ResourceVersion}, "spec": map[string]any{"taints": kept},
	})
	if err != nil {
		return nil, err
	}
	_, err = t.Client.CoreV1().Nodes().Patch(ctx, t.Node, types.MergePatchType, body, metav1.PatchOptions{})
	return removed, err
}

// Owner is the DaemonSet that this agent is a pod of.
type Owner struct {
	Client          kubernetes.Interface
	Namespace, Name string
	Node            string

	seen atomic.Bool
}

// ownerWait is before DaemonSet is asked for again.
const ownerWait = 5 * time.Second

// Look asks for the DaemonSet until it is there, while all is well: what is refused
// later, and was not before, was taken away together with it. It returns when it knows,
// or ctx ends; failed is told of the first error.
func (o *Owner) Look(ctx context.Context, failed func(error)) {
	told := false
	for !o.look(ctx, func(err error) {
		if !told {
			failed(err)
		}
		told = true
	}) {
		if !sleep(ctx, ownerWait) {
			return
		}
	}
}

func (o *Owner) look(ctx context.Context, failed func(error)) bool {
	asked, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := o.Client.AppsV1().DaemonSets(o.Namespace).Get(asked, o.Name, metav1.GetOptions{})
	if err != nil && ctx.Err() == nil {
		failed(err)
	}
	if err == nil {
		o.seen.Store(true)
	}
	return err == nil
}

// Gone says whether the agent is leaving this node for good, rather than making room
// for its successor, and why that is thought. An error means that it cannot be told.
func (o *Owner) Gone(ctx context.Context) (gone bool, why string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	name := "DaemonSet " + o.Namespace + "/" + o.Name
	ds, err := o.Client.AppsV1().DaemonSets(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true, name + " is gone", nil
	case (apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err)) && o.seen.Load():
		return true, "the right to see " + name + " has been taken away", nil
	case err != nil:
		return false, "", fmt.Errorf("%s: %w", name, err)
	case ds.DeletionTimestamp != nil:
		return true, name + " is being deleted", nil
	}
	if goes, err := o.namespaceGoes(ctx); err != nil || goes {
		return goes, "namespace " + o.Namespace + " is being deleted", err
	}
	node, err := o.Client.CoreV1().Nodes().Get(ctx, o.Node, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, "the node is gone as well", nil
	case err != nil:
		return false, "", fmt.Errorf("node %s: %w", o.Node, err)
	}
	fits, err := fitsNode(ds, node)
	switch {
	case err != nil:
		return false, "", fmt.Errorf("%s: %w", name, err)
	case !fits:
		return true, name + " is not for this node any more", nil
	}
	return false, name + " is there", nil
}

// namespaceGoes says whether the namespace is being deleted: of such a one, pods may go
// before what would make them anew. The agent may list namespaces, not get one.
func (o *Owner) namespaceGoes(ctx context.Context) (bool, error) {
	l, err := o.Client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + o.Namespace})
	if err != nil {
		return false, fmt.Errorf("namespace %s: %w", o.Namespace, err)
	}
	return slices.ContainsFunc(l.Items, func(ns corev1.Namespace) bool {
		return ns.Name == o.Namespace && ns.DeletionTimestamp != nil
	}), nil
}

// fitsNode says whether a DaemonSet's pods are for a node, as far as its labels say.
func fitsNode(ds *appsv1.DaemonSet, node *corev1.Node) (bool, error) {
	spec := &ds.Spec.Template.Spec
	if !labels.SelectorFromSet(spec.NodeSelector).Matches(labels.Set(node.Labels)) {
		return false, nil
	}
	if spec.Affinity == nil || spec.Affinity.NodeAffinity == nil || spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return true, nil
	}
	var errs []error
	for _, term := range spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		ok, err := termMatches(term, node)
		if ok {
			return true, nil
		}
		errs = append(errs, err)
	}
	return false, errors.Join(errs...)
}

func termMatches(term corev1.NodeSelectorTerm, node *corev1.Node) (bool, error) {
	if len(term.MatchExpressions) == 0 && len(term.MatchFields) == 0 {
		return false, nil // as the scheduler has it
	}
	for _, list := range []struct {
		of   []corev1.NodeSelectorRequirement
		what labels.Set
	}{
		{term.MatchExpressions, node.Labels}, {term.MatchFields, labels.Set(fields.Set{"metadata.name": node.Name})},
	} {
		for _, r := range list.of {
			ops := map[corev1.NodeSelectorOperator]selection.Operator{
				corev1.NodeSelectorOpIn: selection.In, corev1.NodeSelectorOpNotIn: selection.NotIn, corev1.NodeSelectorOpExists: selection.Exists,
				corev1.NodeSelectorOpDoesNotExist: selection.DoesNotExist, corev1.NodeSelectorOpGt: selection.GreaterThan, corev1.NodeSelectorOpLt: selection.LessThan,
			}
			req, err := labels.NewRequirement(r.Key, ops[r.Operator], r.Values)
			if err != nil {
				return false, err
			}
			if !req.Matches(list.what) {
				return false, nil
			}
		}
	}
	return true, nil
}
