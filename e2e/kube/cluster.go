package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/warren-mesh/warren/e2e/kube/app"
)

// Cluster is the Kubernetes under test.
type Cluster struct {
	kubernetes.Interface
	REST  *rest.Config
	Nodes []string // those that run pods
	dyn   dynamic.Interface
}

// Connect goes to the cluster that $KUBECONFIG names.
func Connect(ctx context.Context) (*Cluster, error) {
	path := os.Getenv("KUBECONFIG")
	if path == "" {
		return nil, errors.New("KUBECONFIG is not set: name the file that leads to the cluster under test, or run `make e2e-kind`, which makes one")
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("KUBECONFIG=%s: %w", path, err)
	}
	cfg.QPS, cfg.Burst, cfg.UserAgent = 200, 400, "warren-e2e"
	cfg.WarningHandler = rest.NoWarnings{}
	c := &Cluster{REST: cfg}
	if c.Interface, err = kubernetes.NewForConfig(cfg); err != nil {
		return nil, err
	}
	if c.dyn, err = dynamic.NewForConfig(cfg); err != nil {
		return nil, err
	}
	nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("KUBECONFIG=%s: %w", path, err)
	}
	for _, n := range nodes.Items {
		if ready(&n) {
			c.Nodes = append(c.Nodes, n.Name)
		}
	}
	if len(c.Nodes) < 2 {
		return nil, fmt.Errorf("KUBECONFIG=%s: %d nodes are ready, and the tests need two", path, len(c.Nodes))
	}
	return c, nil
}

func ready(n *corev1.Node) bool {
	cond := readiness(n)
	return cond != nil && cond.Status == corev1.ConditionTrue
}

func readiness(n *corev1.Node) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if cond := &n.Status.Conditions[i]; cond.Type == corev1.NodeReady {
			return cond
		}
	}
	return nil
}

// NodeHeard waits until a node's kubelet has said since then that it is ready.
func (c *Cluster) NodeHeard(ctx context.Context, node string, since time.Time, within time.Duration) error {
	return Until(ctx, within, node+" is ready", func(ctx context.Context) error {
		n, err := c.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if cond := readiness(n); cond == nil || cond.Status != corev1.ConditionTrue || !cond.LastHeartbeatTime.After(since) {
			return fmt.Errorf("the condition is %+v", cond)
		}
		return nil
	})
}

// Until asks again and again until ok returns nil, and says what was last wrong. While
// everything stands still, the time does as well.
func Until(ctx context.Context, within time.Duration, what string, ok func(context.Context) error) error {
	began := time.Now()
	var err error
	for {
		left := within - time.Since(began) + app.StoodStill(began)
		if left <= 0 {
			left = within - time.Since(began) + app.Late(began)
		}
		if left <= 0 {
			return fmt.Errorf("%s: not within %s: %w", what, time.Since(began).Round(time.Second), err)
		}
		once, cancel := context.WithTimeout(ctx, left)
		now := ok(once)
		cut := once.Err() != nil
		cancel()
		if now == nil {
			return nil
		}
		if err == nil || !cut { // the last call is cut short, and says only that
			err = now
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %s: %w", what, time.Since(began).Round(time.Second), err)
		case <-time.After(50 * time.Millisecond): // a poll's interval
		}
	}
}

// Dynamic is for kinds that are no Go types here.
func (c *Cluster) Dynamic() dynamic.Interface { return c.dyn }

// Taint puts a taint on a node that keeps pods away which do not tolerate it.
func (c *Cluster) Taint(ctx context.Context, node, key string) error {
	n, err := c.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return err
	}
	n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
	_, err = c.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{})
	return err
}
