package kube

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// Exec runs a command in a pod, as kubectl exec does; container may be empty where
// there is one.
func (c *Cluster) Exec(ctx context.Context, namespace, pod, container string, command ...string) (string, error) {
	req := c.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	run, err := remotecommand.NewSPDYExecutor(c.REST, http.MethodPost, req.URL())
	if err != nil {
		return "", err
	}
	var out, errOut bytes.Buffer
	err = run.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut})
	if err != nil {
		err = fmt.Errorf("exec in %s/%s: %s: %w: %s", namespace, pod, strings.Join(command, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), err
}

// Logs is what a container has written since then.
func (c *Cluster) Logs(ctx context.Context, namespace, pod, container string, since metav1.Time) (string, error) {
	o := &corev1.PodLogOptions{Container: container}
	if !since.IsZero() {
		o.SinceTime = &since
	}
	b, err := c.CoreV1().Pods(namespace).GetLogs(pod, o).DoRaw(ctx)
	return string(b), err
}

// Proxied fetches a path from a pod's port through the API server.
func (c *Cluster) Proxied(ctx context.Context, namespace, pod string, port int, path string) (string, error) {
	b, err := c.CoreV1().Pods(namespace).ProxyGet("http", pod, fmt.Sprint(port), path, nil).DoRaw(ctx)
	return string(b), err
}
