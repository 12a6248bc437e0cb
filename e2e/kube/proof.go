package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Line is one line of a proxy's access log: its keys, and where it was written.
type Line struct {
	Node string
	Keys map[string]string
}

// Access returns the lines about finished connections that the proxies of all nodes
// wrote since then.
func (m *Mesh) Access(ctx context.Context, since time.Time) ([]Line, error) {
	var lines []Line
	for _, node := range m.Nodes {
		pods, err := m.PodsOn(ctx, ProxyDaemonSet, node)
		if err != nil {
			return nil, err
		}
		for _, p := range pods {
			text, err := m.Logs(ctx, p.Namespace, p.Name, proxyContainer, metav1.NewTime(since))
			if err != nil {
				return nil, err
			}
			for l := range strings.Lines(text) {
				if keys := parseLine(l); keys["direction"] != "" {
					lines = append(lines, Line{Node: node, Keys: keys})
				}
			}
		}
	}
	return lines, nil
}

var pair = regexp.MustCompile(`([a-z_.]+)=("(?:[^"\\]|\\.)*"|\S+)`)

// parseLine reads both formats of the log.
func parseLine(l string) map[string]string {
	keys := map[string]string{}
	if strings.HasPrefix(l, "{") {
		var obj map[string]any
		if json.Unmarshal([]byte(l), &obj) == nil {
			for k, v := range obj {
				keys[k] = fmt.Sprint(v)
			}
		}
		return keys
	}
	for _, m := range pair.FindAllStringSubmatch(l, -1) {
		v := m[2]
		if u, err := strconv.Unquote(v); err == nil {
			v = u
		}
		keys[m[1]] = v
	}
	return keys
}

// Identity is the SPIFFE ID of a pod.
func Identity(p *corev1.Pod) string {
	return fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/%s", p.Namespace, p.Spec.ServiceAccountName)
}

// WaitMutual waits for the access line of a connection between two pods that both
// sides authenticated: the destination's proxy names both identities.
func (m *Mesh) WaitMutual(ctx context.Context, since time.Time, from, to *corev1.Pod) error {
	what := fmt.Sprintf("an inbound access line with %s → %s", Identity(from), Identity(to))
	return Until(ctx, 30*time.Second, what, func(ctx context.Context) error { return m.mutual(ctx, since, from, to) })
}

// Mutual makes calls from one pod to another until one of them was between two pods that
// both sides authenticated.
func (m *Mesh) Mutual(ctx context.Context, within time.Duration, from, to *corev1.Pod, target string) error {
	began := time.Now().Add(-time.Second)
	return Until(ctx, within, fmt.Sprintf("a call from %s to %s", Identity(from), Identity(to)), func(ctx context.Context) error {
		r, err := m.Call(ctx, from.Namespace, from.Name, target)
		if err == nil && !r.OK {
			err = errors.New(r.Err)
		}
		if err != nil {
			return err
		}
		return m.mutual(ctx, began, from, to)
	})
}

func (m *Mesh) mutual(ctx context.Context, since time.Time, from, to *corev1.Pod) error {
	lines, err := m.Access(ctx, since)
	if err != nil {
		return err
	}
	var near []Line
	for _, l := range lines {
		if l.Keys["direction"] == "inbound" && l.Keys["src.identity"] == Identity(from) && l.Keys["dst.identity"] == Identity(to) && l.Keys["error"] == "" {
			return nil
		}
		if strings.HasPrefix(l.Keys["dst.addr"], to.Status.PodIP+":") {
			near = append(near, l)
		}
	}
	return fmt.Errorf("the proxies wrote %d lines, of these to %s: %v", len(lines), to.Name, near)
}

// Metric sums a metric over the proxies of all nodes: the samples whose labels hold
// all of the given pairs.
func (m *Mesh) Metric(ctx context.Context, name string, labels map[string]string) (float64, error) {
	sum := 0.0
	for _, node := range m.Nodes {
		pods, err := m.PodsOn(ctx, ProxyDaemonSet, node)
		if err != nil {
			return 0, err
		}
		for _, p := range pods {
			text, err := m.Proxied(ctx, p.Namespace, p.Name, proxyMetricsPort, "metrics")
			if err != nil {
				return 0, err
			}
			sum += SumMetric(text, name, labels)
		}
	}
	return sum, nil
}

// SumMetric sums the samples of a metric in a page of metrics whose labels hold all
// of the given pairs.
func SumMetric(page, name string, labels map[string]string) float64 {
	sum := 0.0
	for l := range strings.Lines(page) {
		sum += sample(l, name, labels)
	}
	return sum
}

func sample(line, name string, labels map[string]string) float64 {
	if !strings.HasPrefix(line, name+"{") && !strings.HasPrefix(line, name+" ") {
		return 0
	}
	for k, v := range labels {
		if !strings.Contains(line, fmt.Sprintf("%s=%q", k, v)) {
			return 0
		}
	}
	f := strings.Fields(line)
	v, err := strconv.ParseFloat(f[len(f)-1], 64)
	if err != nil {
		return 0
	}
	return v
}
