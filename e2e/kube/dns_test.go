//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/warren-mesh/warren/e2e/kube"
)

// No resolver but the proxy's knows this host.
const onlyHere = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: only-here, namespace: NS}
spec:
  hosts: [only-here.example]
  addresses: [240.240.78.1]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints: [{address: FAR}]
`

// TestDNS: with DNS capture the proxy answers pods for what the mesh knows, and asks the
// cluster's own resolver, as the pod would, for the rest. Its listeners are in the pods,
// so that it may be in the node's network itself.
func TestDNS(t *testing.T) {
	variant(t, kube.Set("mesh.dnsCapture=true", "proxy.hostNetwork=true")...)
	e := newEnds(t)
	awaitCaptured(t, e.a, e.near, e.far)
	service(t, e.ns, "web", map[string]string{"serves": "yes"}, false)
	apply(t, e.ns, strings.ReplaceAll(onlyHere, "FAR", e.far.Status.PodIP))
	full := "http://web." + e.ns + ".svc.cluster.local:80"
	for _, target := range []string{"http://web:80", "http://web." + e.ns + ":80", full, "http://only-here.example:80"} {
		mustCall(t, e.a, target)
	}
	must(t, mesh.Mutual(testContext(t), time.Minute, e.a, e.far, "http://only-here.example:80"))
	for _, from := range []*corev1.Pod{e.a, e.outside} { // the answer is that of the cluster's resolver
		must(t, kube.Until(testContext(t), time.Minute, from.Name+" is told that a name does not exist", func(ctx context.Context) error {
			r, err := mesh.Call(ctx, e.ns, from.Name, "http://no-such-name.default.svc.cluster.local:80")
			if err == nil && !strings.Contains(r.Err, "no such host") {
				err = fmt.Errorf("%+v", r)
			}
			return err
		}))
	}
	mustCall(t, e.outside, full)
	mustNotCall(t, e.outside, "http://only-here.example:80")
}
