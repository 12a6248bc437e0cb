//go:build envoy

package envoy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// answer says what a web server in a pod was asked.
func answer(t *testing.T, p *onehost.Pod, port int) {
	t.Helper()
	l, err := p.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := netip.MustParseAddrPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s from %s by %s", p.Spec.Name, from.Addr().Unmap(), r.Header.Get("X-Waypoint"))
	})}
	go s.Serve(l) // ends with Close
	t.Cleanup(func() { _ = s.Close() })
}

// get makes one request on a connection of its own.
func get(p *onehost.Pod, to netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.Dial(ctx, to) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+"/", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return string(b), err
}

// answered waits until a request is answered so.
func answered(t *testing.T, p *onehost.Pod, to netip.AddrPort, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s asks %s", p.Spec.Name, to), func() error {
		got, err := get(p, to)
		if err == nil && got != want {
			err = fmt.Errorf("%q, not %q", got, want)
		}
		return err
	})
}

// wholeAnswer reads an answer to the end of the connection: Envoy closes after it, which is
// no reason to reset what the application has not read yet.
func wholeAnswer(t *testing.T, p *onehost.Pod, to netip.AddrPort) {
	t.Helper()
	c := mustDial(t, p, to)
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", to); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 200 OK") {
		t.Errorf("%q, then %v", got, err)
	}
}

// vip is the address of the Service web.
const vip = "10.96.71.1"

func putWaypoint(t *testing.T, m *onehost.Mesh, wp *onehost.Pod, kind, binding string) {
	t.Helper()
	put(t, m, "Gateway", "wp", fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: app, labels: {istio.io/waypoint-for: %s}, annotations: {ambient.istio.io/waypoint-inbound-binding: %q}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: IPAddress, value: %s}]}`, kind, binding, wp.IP4()))
}

func putService(t *testing.T, m *onehost.Mesh, labels string) {
	t.Helper()
	put(t, m, "Service", "web", fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: web, namespace: app, labels: {%s}}
spec: {clusterIP: %s, clusterIPs: [%[2]s], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: resets, port: 81}, {name: denied, port: 403}, {name: full, port: 503}]}`, labels, vip))
}

// TestWaypoint: requests for a Service, and for a pod, go through Envoy to the server,
// which takes them from Envoy alone.
func TestWaypoint(t *testing.T) {
	m := newMesh(t, onehost.Options{})
	client := addPod(t, m.Nodes[0], "client", nil)
	server := addPod(t, m.Nodes[1], "server", map[string]string{"app": "web", "istio.io/use-waypoint": "wp"})
	other := addPod(t, m.Nodes[0], "other", nil)
	wp := addWaypoint(t, m.Nodes[1], "wp")
	answer(t, server, 8080)
	service, pod := netip.MustParseAddrPort(vip+":80"), netip.AddrPortFrom(server.IP4(), 8080)
	e := newEnvoy(t, wp)
	listeners, clusters := e.waypoint(issue(t, wp), terms{}, destination{"service", service, pod, false}, destination{"pod", pod, pod, false})
	e.start(t, listeners, clusters)
	putService(t, m, "istio.io/use-waypoint: wp")
	putWaypoint(t, m, wp, "all", "")

	answered(t, client, service, fmt.Sprintf("server from %s by service", wp.IP4()))
	answered(t, client, pod, fmt.Sprintf("server from %s by pod", wp.IP4()))
	for _, want := range []struct{ authority, forwarded string }{
		{service.String(), "host=web.app.svc.cluster.local"}, {pod.String(), `for="` + client.IP4().String()},
	} {
		eventually(t, "Envoy logs the request for "+want.authority, func() error {
			var all []asked
			for _, a := range e.log(t) {
				if a.Authority == want.authority && a.Code == http.StatusOK && a.Peer == identity("client") && strings.Contains(a.Forwarded, want.forwarded) &&
					strings.Contains(a.Baggage, "k8s.pod.name=client") && strings.HasPrefix(a.Source, client.IP4().String()+":") && strings.HasPrefix(a.Traceparent, "00-") {
					return nil
				}
				all = append(all, a)
			}
			return fmt.Errorf("only %+v", all)
		})
	}

	wholeAnswer(t, client, service)

	// Who goes around the waypoint is refused, and the waypoint is not.
	if err := m.PutPolicy("app", "waypoint-only", "  selector: {matchLabels: {app: web}}\n  rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/wp]}}]}]\n"); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitPolicy(t.Context(), "app/waypoint-only"); err != nil {
		t.Fatal(err)
	}
	answered(t, client, service, fmt.Sprintf("server from %s by service", wp.IP4()))
	putService(t, m, "")
	eventually(t, "without its waypoint the service refuses", func() error {
		if got, err := get(other, service); err == nil {
			return fmt.Errorf("it answered %q", got)
		}
		return nil
	})
}
