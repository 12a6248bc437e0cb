package onehost_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/istio"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/e2e/onehost"
	tunnels "github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/ready"
	"github.com/warren-mesh/warren/proxy/relay"
)

// certificate gets one for a service account that has a pod on the node, from the
// mesh's own CA and with the node's token, as the node's proxy would.
func certificate(t *testing.T, m *onehost.Mesh, n *onehost.Node, namespace, account string) *mtls.Identity {
	t.Helper()
	roots := func() ([]byte, error) { return os.ReadFile(m.RootCert()) }
	addr := m.ControlPlaneAddr()
	config := mtls.ToServer(roots, addr.Addr().String(), "")
	signer, err := istio.New(istio.Config{
		Address: "https://" + addr.String(),
		TLS:     func() (*tls.Config, error) { return config, nil },
		Token: func() (string, error) {
			b, err := os.ReadFile(filepath.Join(m.Opts.Dir, n.Name, "token"))
			return string(b), err
		},
		Dial: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = n.NS.Do(func() error { c, err = new(net.Dialer).DialContext(ctx, network, address); return err })
			return c, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer signer.Close()
	manager := svid.New(svid.Config{Signer: signer})
	ctx, cancel := context.WithCancel(testContext(t))
	var wg sync.WaitGroup
	wg.Go(func() { _ = manager.Run(ctx) })
	defer func() { cancel(); wg.Wait() }()
	id := spiffeid.RequireFromString(fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/%s", namespace, account))
	lease := manager.Acquire(svid.Pod{UID: "test"}, id)
	defer lease.Release()
	i, err := lease.Identity(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// asked is a CONNECT that a network's gateway got.
type asked struct{ peer, authority string }

// serveGateway runs a network's gateway in a pod: it takes HBONE and sends what is
// in it on to target, as it is.
func serveGateway(t *testing.T, p *onehost.Pod, self *mtls.Identity, target netip.AddrPort) <-chan asked {
	t.Helper()
	set, err := ready.New(1)
	if err != nil {
		t.Fatal(err)
	}
	flows, got := relay.New(set), make(chan asked, 16)
	var work sync.WaitGroup
	t.Cleanup(func() { work.Wait(); set.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	serve(t, p, 15008, func(c *net.TCPConn) {
		cfg := mtls.Server(func(context.Context) (*mtls.Identity, error) { return self, nil })
		_ = tunnels.Serve(ctx, ctx, c, cfg, tunnels.Config{}, tunnels.HandlerFunc(func(in *tunnels.Incoming) {
			work.Go(func() {
				peer, _ := mtls.Peer(in.TLS())
				got <- asked{peer.String(), in.Authority}
				out, err := p.Dial(ctx, target)
				if err != nil {
					in.Reject(http.StatusServiceUnavailable)
					return
				}
				work.Add(1)
				flows.Start(out, in.Accept(nil), nil, func(relay.Result) { work.Done() })
			})
		}))
	})
	t.Cleanup(cancel)
	return got
}

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
	got := serveGateway(t, edge, certificate(t, m, m.Nodes[1], "app", "edge"), netip.AddrPortFrom(server.IP4(), 15008))
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
	if a := <-got; a.peer != "spiffe://cluster.local/ns/app/sa/client" || a.authority != "far.app.svc.cluster.local:80" {
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
