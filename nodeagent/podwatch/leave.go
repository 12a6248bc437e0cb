package podwatch

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const leavePoll = 500 * time.Millisecond

var errPodsLeft = errors.New("some of its pods have not ended: a node that does not answer keeps its own")

// EndDaemonSet deletes a DaemonSet and returns when the last of its pods has ended, or
// with why not when ctx ends or it may not. One that is not there has none.
func EndDaemonSet(ctx context.Context, client kubernetes.Interface, namespace, name string) error {
	sets := client.AppsV1().DaemonSets(namespace)
	// In the foreground: the object stays, being deleted, until its pods are gone.
	how := metav1.DeletePropagationForeground
	for {
		err := sets.Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &how})
		for err == nil {
			if !sleep(ctx, leavePoll) {
				return fmt.Errorf("DaemonSet %s/%s: %w", namespace, name, errPodsLeft)
			}
			_, err = sets.Get(ctx, name, metav1.GetOptions{})
		}
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case apierrors.IsForbidden(err), !sleep(ctx, leavePoll):
			return fmt.Errorf("DaemonSet %s/%s: %w", namespace, name, err)
		}
	}
}
