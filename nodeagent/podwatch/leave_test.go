package podwatch

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

// An API server keeps a DaemonSet that is deleted in the foreground until its last pod
// has ended. One that is busy is asked again; one that forbids it is not.
func TestEndDaemonSet(t *testing.T) {
	busy := apierrors.NewTooManyRequests("later", 1)
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "daemonsets"}, "agent", errors.New("no"))
	for name, c := range map[string]struct {
		there   bool
		failing []error // of the first requests to delete
		ends    int64   // after so many looks the object is gone; 0: it stays
		within  time.Duration
		want    error
	}{
		"not there":        {within: time.Minute},
		"in two looks":     {there: true, ends: 2, within: time.Minute},
		"busy at first":    {there: true, failing: []error{busy}, ends: 1, within: time.Minute},
		"forbidden":        {there: true, failing: []error{forbidden}, within: time.Minute, want: forbidden},
		"a pod that stays": {there: true, within: 2 * leavePoll, want: errPodsLeft},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			if c.there {
				client = fake.NewClientset(&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "agent"}})
			}
			var looks atomic.Int64
			deleted := false
			client.PrependReactor("delete", "daemonsets", func(a k8stesting.Action) (bool, runtime.Object, error) {
				if len(c.failing) > 0 {
					err := c.failing[0]
					c.failing = c.failing[1:]
					return true, nil, err
				}
				if p := a.(k8stesting.DeleteActionImpl).DeleteOptions.PropagationPolicy; p == nil || *p != metav1.DeletePropagationForeground {
					t.Errorf("deleted by %v: its pods are not waited for", p)
				}
				deleted = c.there
				return c.there, nil, nil // it stays for now
			})
			client.PrependReactor("get", "daemonsets", func(k8stesting.Action) (bool, runtime.Object, error) {
				if n := looks.Add(1); c.ends > 0 && n >= c.ends {
					return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "daemonsets"}, "agent")
				}
				return false, nil, nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), c.within)
			defer cancel()
			if err := EndDaemonSet(ctx, client, "ns", "agent"); !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if c.want == nil && (deleted != c.there || c.there && looks.Load() < c.ends) {
				t.Errorf("deleted %v after %d looks", deleted, looks.Load())
			}
		})
	}
}
