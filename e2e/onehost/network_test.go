package onehost_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// TestOtherNetwork: a Service whose endpoint is in another network is reached
// through that network's gateway, the client proven to both, and the endpoint to
// the client.
func TestOtherNetwork(t *testing.T) {
	m := sharedMesh(t)
	client := addPod(t, m.Nodes[0], "app", "client", nil)
	server := addPod(t, m.Nodes[1], "app", "server", nil)
	edge := addPod(t, m.Nodes[1], "plain", "edge", nil)
	addPod(t, m.Nodes[1], "app", "edge", nil) // the CA gives a node the identities of its mesh pods
	seen := make(chan netip.Addr, 16)
	serve(t, server, 8080, func(c *net.TCPConn) {
		seen <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		onehost.Echo(c)
	})
	waitPods(t, m)
	self, err := m.Nodes[1].Certificate(testContext(t), "app", "edge")
	if err != nil {
		t.Fatal(err)
	}
	gw, err := edge.ServeGateway(self, netip.AddrPortFrom(server.IP4(), 15008))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	vip := netip.MustParseAddrPort("10.96.72.1:80")
	put(t, m, "Service", "app", "far", service("far", vip.Addr(), ""))
	put(t, m, "WorkloadEntry", "app", "far", `
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: far, namespace: app, labels: {app: far}}
spec: {network: n2, serviceAccount: server, labels: {app: far}}`)
	put(t, m, "Gateway", "app", "edge", fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: app, labels: {topology.istio.io/network: n2}, annotations: {gateway.istio.io/service-account: edge}}
spec:
  gatewayClassName: istio-remote
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
  addresses: [{type: IPAddress, value: %s}]`, edge.IP4()))
	waitRoutes(t, m, "the gateway of n2", func(r *routes) bool {
		for _, w := range r.Workloads {
			if w.NetworkGateway != nil && w.NetworkGateway.Destination == "n2/"+edge.IP4().String() {
				return true
			}
		}
		return false
	})
	const secret = "across-the-border"
	m.Capture.Mark(secret)
	before := m.Capture.Counts()
	if err := roundTrip(client, vip, secret); err != nil {
		t.Fatal(err)
	}
	if a := <-gw.Asked; a.Peer != "spiffe://cluster.local/ns/app/sa/client" || a.Authority != "far.app.svc.cluster.local:80" {
		t.Errorf("the gateway was asked %+v", a)
	}
	if from := <-seen; from != edge.IP4() {
		t.Errorf("the server saw %s, the gateway is %s", from, edge.IP4())
	}
	if d := m.Capture.Counts().Since(before); d.Marker != 0 || d.NotTLS != 0 {
		t.Errorf("the wire saw the text: %+v", d)
	}
	// The identity that counts at the server is the client's, within the inner tunnel.
	if err := m.PutPolicy("app", "not-the-client", "  action: DENY\n  rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/client]}}]}]\n"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Remove("AuthorizationPolicy", "app", "not-the-client") })
	if err := m.WaitPolicy(testContext(t), "app/not-the-client"); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, client, vip)
	if err := m.Remove("AuthorizationPolicy", "app", "not-the-client"); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitNoPolicy(testContext(t), "app/not-the-client"); err != nil {
		t.Fatal(err)
	}
	// Without the gateway the endpoint is out of reach, and nothing goes there in the open.
	if err := m.Remove("Gateway", "app", "edge"); err != nil {
		t.Fatal(err)
	}
	waitRoutes(t, m, "the gateway of n2 is gone", func(r *routes) bool {
		for _, w := range r.Workloads {
			if w.NetworkGateway != nil {
				return false
			}
		}
		return true
	})
	eventually(t, 10*time.Second, "the service is out of reach", func() error {
		if roundTrip(client, vip, "hello") == nil {
			return fmt.Errorf("it was reached")
		}
		return nil
	})
}
