package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/warren-mesh/warren/e2e/kube/app"
)

// AppPath is the program of the tests' application in its image.
const AppPath = "/meshapp"

// AppImage is the image with the tests' application.
func AppImage() string { return os.Getenv("E2E_APP_IMAGE") }

// PodSpec says what pod to make; it runs the tests' application.
type PodSpec struct {
	Namespace, Name string
	Node            string // empty: wherever
	Labels          map[string]string
	Annotations     map[string]string
	Account         string // service account; empty: as Name
	Mutate          func(*corev1.Pod)
}

// Pod makes the object.
func (s PodSpec) Pod() *corev1.Pod {
	labels := map[string]string{"app": s.Name}
	maps.Copy(labels, s.Labels)
	account := s.Account
	if account == "" {
		account = s.Name
	}
	no, grace := false, int64(2)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, Labels: labels, Annotations: s.Annotations},
		Spec: corev1.PodSpec{
			ServiceAccountName: account, AutomountServiceAccountToken: &no, TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "app", Image: AppImage(), ImagePullPolicy: corev1.PullNever, Command: []string{AppPath, "serve"},
				Env: []corev1.EnvVar{{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}},
			}},
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		},
	}
	if s.Node != "" {
		pod.Spec.NodeSelector = map[string]string{"kubernetes.io/hostname": s.Node}
	}
	if s.Mutate != nil {
		s.Mutate(pod)
	}
	return pod
}

// Create makes the pod and its service account.
func (c *Cluster) Create(ctx context.Context, s PodSpec) (*corev1.Pod, error) {
	pod := s.Pod()
	if err := c.Account(ctx, pod.Namespace, pod.Spec.ServiceAccountName); err != nil {
		return nil, err
	}
	return c.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
}

// Account makes a service account, unless it is there.
func (c *Cluster) Account(ctx context.Context, namespace, name string) error {
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	_, err := c.CoreV1().ServiceAccounts(namespace).Create(ctx, sa, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		err = nil
	}
	return err
}

// WaitReady waits until the pod is ready and returns it as it is then.
func (c *Cluster) WaitReady(ctx context.Context, namespace, name string, within time.Duration) (*corev1.Pod, error) {
	var pod *corev1.Pod
	err := Until(ctx, within, "pod "+namespace+"/"+name+" is ready", func(ctx context.Context) (err error) {
		if pod, err = c.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		if !PodReady(pod) {
			return fmt.Errorf("%s", c.why(ctx, pod))
		}
		return nil
	})
	return pod, err
}

// PodReady reports the condition Ready.
func PodReady(pod *corev1.Pod) bool {
	for _, cond := range pod.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil
		}
	}
	return false
}

// why says in what state a pod is and what its last events told.
func (c *Cluster) why(ctx context.Context, pod *corev1.Pod) string {
	words := []string{"phase " + string(pod.Status.Phase)}
	for _, s := range pod.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil {
			words = append(words, fmt.Sprintf("container %s waits: %s: %s", s.Name, w.Reason, w.Message))
		}
		if t := s.State.Terminated; t != nil {
			words = append(words, fmt.Sprintf("container %s ended with %d: %s", s.Name, t.ExitCode, t.Message))
		}
	}
	for _, e := range c.Events(ctx, pod.Namespace, pod.Name) {
		if e.Type == corev1.EventTypeWarning {
			words = append(words, fmt.Sprintf("event %s: %s", e.Reason, e.Message))
		}
	}
	return strings.Join(words, "; ")
}

// Events are those about one pod.
func (c *Cluster) Events(ctx context.Context, namespace, pod string) []corev1.Event {
	l, err := c.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + pod})
	if err != nil {
		return nil
	}
	return l.Items
}

// Label sets labels of a pod or, without a pod's name, of the namespace; an empty
// value removes one.
func (c *Cluster) Label(ctx context.Context, namespace, pod string, labels map[string]string) error {
	return c.patchMeta(ctx, namespace, pod, "labels", labels)
}

// Annotate is Label for annotations.
func (c *Cluster) Annotate(ctx context.Context, namespace, pod string, annotations map[string]string) error {
	return c.patchMeta(ctx, namespace, pod, "annotations", annotations)
}

func (c *Cluster) patchMeta(ctx context.Context, namespace, pod, field string, values map[string]string) error {
	set := map[string]any{}
	for k, v := range values {
		if set[k] = v; v == "" {
			set[k] = nil
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{field: set}})
	if err != nil {
		return err
	}
	if pod == "" {
		_, err = c.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, patch, metav1.PatchOptions{})
	} else {
		_, err = c.CoreV1().Pods(namespace).Patch(ctx, pod, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	return err
}

// Call makes one call from a pod.
func (c *Cluster) Call(ctx context.Context, namespace, pod, url string) (app.Result, error) {
	var r app.Result
	err := c.control(ctx, namespace, pod, "call", app.Call{URL: url}, &r)
	return r, err
}

// StartLoad starts a load in a pod; it goes on until StopLoad or the pod's end.
func (c *Cluster) StartLoad(ctx context.Context, namespace, pod string, l app.Load) error {
	return c.control(ctx, namespace, pod, "load", l, &app.Summary{})
}

// LookLoad says how a load goes.
func (c *Cluster) LookLoad(ctx context.Context, namespace, pod, name string) (s app.Summary, err error) {
	return s, c.control(ctx, namespace, pod, "look", app.Load{Name: name}, &s)
}

// StopLoad ends a load and says how it went.
func (c *Cluster) StopLoad(ctx context.Context, namespace, pod, name string) (s app.Summary, err error) {
	return s, c.control(ctx, namespace, pod, "stop", app.Load{Name: name}, &s)
}

func (c *Cluster) control(ctx context.Context, namespace, pod, command string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	text, err := c.Exec(ctx, namespace, pod, "app", AppPath, "ctl", command, string(body))
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), out)
}
