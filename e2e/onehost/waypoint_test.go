package onehost_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// put writes an object that the test's end removes.
func put(t *testing.T, m *onehost.Mesh, kind, namespace, name, doc string) {
	t.Helper()
	if err := m.PutYAML(kind, namespace, name, doc); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Remove(kind, namespace, name) })
}

// service is a Service of port 80 whose pods listen on 8080.
func service(name string, vip netip.Addr, labels string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: app, labels: {%s}}
spec: {clusterIP: %s, clusterIPs: [%s], selector: {app: %s}, ports: [{name: tcp, port: 80, targetPort: 8080}]}`, name, labels, vip, vip, name)
}

// routes is what the tests read of a proxy's dump.
type routes struct {
	Services []struct {
		Name      string
		Waypoint  *struct{ Destination string }
		Endpoints map[string]any
	}
	Workloads []struct {
		UID            string
		NetworkGateway *struct{ Destination string }
	}
}

// waitRoutes waits until ok holds for what every proxy knows.
func waitRoutes(t *testing.T, m *onehost.Mesh, what string, ok func(*routes) bool) {
	t.Helper()
	for _, n := range m.Nodes {
		eventually(t, 30*time.Second, what, func() error {
			var r routes
			if err := n.ConfigDump(testContext(t), &r); err != nil {
				return err
			}
			if !ok(&r) {
				return fmt.Errorf("%s does not know it yet", n.Name)
			}
			return nil
		})
	}
}

// waypointOf waits until a service has that waypoint, or none.
func waypointOf(t *testing.T, m *onehost.Mesh, name, destination string) {
	t.Helper()
	waitRoutes(t, m, "waypoint of "+name, func(r *routes) bool {
		for _, s := range r.Services {
			if s.Name == name {
				return (s.Waypoint == nil) == (destination == "") && (s.Waypoint == nil || s.Waypoint.Destination == destination)
			}
		}
		return false
	})
}

// serveWaypoint runs the application of a waypoint until the test ends.
func serveWaypoint(t *testing.T, wp *onehost.Pod, port int) <-chan onehost.Told {
	t.Helper()
	heard := make(chan onehost.Told, 16)
	s, err := wp.ServeWaypoint(port, heard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return heard
}

// TestWaypoint binds a Service to a Gateway whose pod is in the mesh: the proxies
// carry each connection to it, tell it whose it is, and carry what it sends on to
// the Service without turning back to it.
func TestWaypoint(t *testing.T) {
	m := sharedMesh(t)
	client := addPod(t, m.Nodes[0], "app", "client", nil)
	server := addPod(t, m.Nodes[1], "app", "server", map[string]string{"app": "judged"})
	wp := addPod(t, m.Nodes[1], "app", "wp", map[string]string{"gateway.networking.k8s.io/gateway-name": "wp"})
	seen := make(chan netip.Addr, 16)
	serve(t, server, 8080, func(c *net.TCPConn) {
		seen <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		onehost.Echo(c)
	})
	waitPods(t, m)
	heard := serveWaypoint(t, wp, 15088)
	vip := netip.MustParseAddrPort("10.96.71.1:80")
	gateway := fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: app, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: IPAddress, value: %s}]}`, wp.IP4())
	put(t, m, "Service", "app", "judged", service("judged", vip.Addr(), "istio.io/use-waypoint: wp"))

	// A waypoint that is not there is no reason to lose connections.
	waypointOf(t, m, "judged", "")
	mustEcho(t, client, vip)
	if from := <-seen; from != client.IP4() {
		t.Fatalf("without a waypoint the server saw %s, the client is %s", from, client.IP4())
	}

	put(t, m, "Gateway", "app", "wp", gateway)
	waypointOf(t, m, "judged", "/"+wp.IP4().String())
	const secret = "judge-this-please"
	m.Capture.Mark(secret)
	before := m.Capture.Counts()
	if err := roundTrip(client, vip, secret); err != nil {
		t.Fatal(err)
	}
	got := <-heard
	if want := "spiffe://cluster.local/ns/app/sa/client"; got.From != netip.MustParseAddr("127.0.0.1") || got.Src.Addr() != client.IP4() || got.Dst != vip || got.Identity != want {
		t.Errorf("the waypoint was told %+v", got)
	}
	if from := <-seen; from != wp.IP4() {
		t.Errorf("the server saw %s, the waypoint is %s", from, wp.IP4())
	}
	if d := m.Capture.Counts().Since(before); d.Marker != 0 || d.NotTLS != 0 {
		t.Errorf("the wire saw the text: %+v", d)
	}
	// By its own address the server has no waypoint: the Gateway is for services.
	mustEcho(t, client, netip.AddrPortFrom(server.IP4(), 8080))
	if from := <-seen; from != client.IP4() {
		t.Errorf("addressed directly the server saw %s", from)
	}

	if err := m.Remove("Gateway", "app", "wp"); err != nil {
		t.Fatal(err)
	}
	waypointOf(t, m, "judged", "")
	mustEcho(t, client, vip)
	if from := <-seen; from != client.IP4() {
		t.Errorf("after the waypoint went the server saw %s", from)
	}
}

// TestWeightedWaypoints: new connections are shared between a waypoint and its
// canary, and both may be asked for the service.
func TestWeightedWaypoints(t *testing.T) {
	m := sharedMesh(t)
	client := addPod(t, m.Nodes[0], "app", "client", nil)
	server := addPod(t, m.Nodes[1], "app", "server", map[string]string{"app": "canaried"})
	echo(t, server, 8080)
	vip := netip.MustParseAddrPort("10.96.71.2:80")
	var heard []<-chan onehost.Told
	var pods []*onehost.Pod
	for _, name := range []string{"stable", "canary"} {
		wp := addPod(t, m.Nodes[1], "app", name, map[string]string{"gateway.networking.k8s.io/gateway-name": name})
		put(t, m, "Gateway", "app", name, fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: %s, namespace: app, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: IPAddress, value: %s}]}`, name, wp.IP4()))
		heard, pods = append(heard, serveWaypoint(t, wp, 15088)), append(pods, wp)
	}
	waitPods(t, m)
	doc := service("canaried", vip.Addr(), "istio.io/use-waypoint: stable, istio.io/use-waypoint-canary: canary")
	put(t, m, "Service", "app", "canaried", doc)
	waypointOf(t, m, "canaried", "/"+pods[0].IP4().String())
	reaches := func(i int) {
		t.Helper()
		mustEcho(t, client, vip)
		for j, c := range heard {
			select {
			case <-c:
				if i != j {
					t.Errorf("%s was asked", pods[j].Spec.Name)
				}
			default:
				if i == j {
					t.Errorf("%s was not asked", pods[j].Spec.Name)
				}
			}
		}
	}
	reaches(0) // without a weight the canary gets nothing
	all := strings.Replace(doc, "canary: canary}", `canary: canary}, annotations: {istio.io/use-waypoint-canary-weight: "100"}`, 1)
	if err := m.PutYAML("Service", "app", "canaried", all); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the canary is asked", func() error {
		if err := roundTrip(client, vip, "x"); err != nil {
			return err
		}
		select {
		case <-heard[1]:
			return nil
		case <-heard[0]:
			return errors.New("the other one was")
		default:
			return errors.New("neither was")
		}
	})
	reaches(1)
}
