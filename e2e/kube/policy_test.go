//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/warren-mesh/warren/e2e/kube"
	"github.com/warren-mesh/warren/e2e/kube/app"
)

// apply makes objects of YAML for the time of the test; NS stands for the namespace.
func apply(t *testing.T, ns, text string) {
	t.Helper()
	objects, err := kube.ParseObjects([]byte(strings.ReplaceAll(text, "NS", ns)))
	must(t, err)
	must(t, mesh.Apply(testContext(t), objects))
	t.Cleanup(func() { _ = mesh.Delete(context.Background(), objects) }) // and with the namespace
}

const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: NS}
spec: {mtls: {mode: STRICT}}
`

func TestPeerAuthentication(t *testing.T) {
	e := newEnds(t)
	mustCall(t, e.outside, url("http", e.far, app.HTTPPort))
	apply(t, e.ns, strict)
	mustNotCall(t, e.outside, url("http", e.far, app.HTTPPort))
	mustNotCall(t, e.outside, url("http", e.near, app.HTTPPort))
	mustCall(t, e.a, url("http", e.far, app.HTTPPort))
	mustCall(t, e.a, url("http", e.near, app.HTTPPort))
	mustCall(t, e.a, url("http", e.outsideFar, app.HTTPPort)) // strict is the destination's
	apply(t, e.ns, `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: far-web, namespace: NS}
spec:
  selector: {matchLabels: {app: far}}
  mtls: {mode: STRICT}
  portLevelMtls: {"8080": {mode: PERMISSIVE}}
`)
	mustCall(t, e.outside, url("http", e.far, app.HTTPPort))
	mustNotCall(t, e.outside, url("tcp", e.far, app.EchoPort))
	mustNotCall(t, e.outside, url("http", e.near, app.HTTPPort))
}

func TestAuthorization(t *testing.T) {
	e := newEnds(t)
	other := run(t, kube.PodSpec{Namespace: e.ns, Name: "other", Node: mesh.Nodes[0]})[0]
	web := url("http", e.far, app.HTTPPort)
	for _, from := range []*corev1.Pod{e.a, other, e.outside} {
		mustCall(t, from, web)
	}
	t.Run("allow by principal", func(t *testing.T) {
		apply(t, e.ns, `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-a, namespace: NS}
spec:
  selector: {matchLabels: {app: far}}
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/NS/sa/a"]}}]}]
`)
		mustNotCall(t, other, web)
		mustNotCall(t, e.outside, web)
		mustCall(t, e.a, web)
		mustCall(t, other, url("http", e.near, app.HTTPPort)) // another workload
		mustCall(t, other, url("http", e.outsideFar, app.HTTPPort))
		policyStatus(t, e.ns, "allow-a")
	})
	mustCall(t, other, web)
	t.Run("deny by port cuts what is live", func(t *testing.T) {
		ctx := testContext(t)
		must(t, mesh.StartLoad(ctx, e.ns, "a", app.Load{Name: "kept", URL: url("tcp", e.far, app.EchoPort), Workers: 4, Interval: "100ms"}))
		must(t, kube.Until(ctx, time.Minute, "kept connections", func(ctx context.Context) error {
			s, err := mesh.LookLoad(ctx, e.ns, "a", "kept")
			if err == nil && (s.Live < 4 || s.Sent < 8) {
				err = fmt.Errorf("%+v", s)
			}
			return err
		}))
		apply(t, e.ns, `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-echo, namespace: NS}
spec:
  selector: {matchLabels: {app: far}}
  action: DENY
  rules: [{to: [{operation: {ports: ["9090"]}}]}]
`)
		mustNotCall(t, e.a, url("tcp", e.far, app.EchoPort))
		mustCall(t, e.a, web)
		must(t, kube.Until(ctx, time.Minute, "live connections are cut", func(ctx context.Context) error {
			s, err := mesh.LookLoad(ctx, e.ns, "a", "kept")
			if err == nil && s.Failed < 4 {
				err = fmt.Errorf("%+v", s)
			}
			return err
		}))
		_, err := mesh.StopLoad(ctx, e.ns, "a", "kept")
		must(t, err)
	})
	mustCall(t, e.a, url("tcp", e.far, app.EchoPort))
}

// policyStatus waits for a condition on the policy.
func policyStatus(t *testing.T, ns, name string) {
	t.Helper()
	gvr := schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
	must(t, kube.Until(testContext(t), time.Minute, "a status condition on "+name, func(ctx context.Context) error {
		o, err := mesh.Dynamic().Resource(gvr).Namespace(ns).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		status, _ := o.Object["status"].(map[string]any)
		if conditions, _ := status["conditions"].([]any); len(conditions) == 0 {
			return fmt.Errorf("its status is %v", o.Object["status"])
		}
		return nil
	}))
}

// TestBadPolicies: nonsense holds up nobody, and its neighbours hold.
func TestBadPolicies(t *testing.T) {
	e := newEnds(t)
	apply(t, e.ns, `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nonsense, namespace: NS}
spec: {selector: {matchLabels: {app: near}}, action: PERHAPS, rules: [{from: [{source: {ipBlocks: ["not an address"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: nonsense, namespace: NS}
spec: {selector: {matchLabels: {app: nobody}}, mtls: {mode: 7}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-echo, namespace: NS}
spec: {selector: {matchLabels: {app: far}}, action: DENY, rules: [{to: [{operation: {ports: ["9090"]}}]}]}
`)
	mustNotCall(t, e.a, url("tcp", e.far, app.EchoPort))
	mustCall(t, e.a, url("http", e.far, app.HTTPPort))
}

// TestBogusWaypoint: a label that names a waypoint that is not there breaks nothing.
func TestBogusWaypoint(t *testing.T) {
	e := newEnds(t)
	svc := service(t, e.ns, "web", map[string]string{"app": "far"}, false)
	must(t, mesh.Label(testContext(t), e.ns, "", map[string]string{"istio.io/use-waypoint": "nobody"}))
	mustCall(t, e.a, fmt.Sprintf("http://%s:80", svc.Spec.ClusterIP))
	mustCall(t, e.a, url("http", e.far, app.HTTPPort))
}
