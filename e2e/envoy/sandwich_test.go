//go:build envoy

package envoy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// sandwich is the configuration of an Envoy between two proxies: what each connection is,
// PROXY protocol says, and what is sent on goes into the clear, where a proxy takes it.
func (e *envoy) sandwich(all ...destination) (listeners, clusters []object) {
	listener := main(all...)
	delete(listener, "internal_listener")
	const filter = "envoy.filters.listener.proxy_protocol"
	listener["address"] = socketAddress(netip.MustParseAddrPort("127.0.0.1:15088"))
	listener["listener_filters"] = []object{typed(filter, "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol", object{
		"rules": []object{{"tlv_type": 0xD0, "on_tlv_present": object{"key": "identity"}}},
	})}
	listener["access_log"] = []object{e.accessLog(object{
		"authority": "%DOWNSTREAM_LOCAL_ADDRESS%", "source": "%DOWNSTREAM_REMOTE_ADDRESS%", "peer": "%DYNAMIC_METADATA(" + filter + ":identity)%",
	})}
	for _, d := range all {
		endpoint := object{"endpoint": object{"address": socketAddress(d.endpoint)}}
		clusters = append(clusters, object{
			"name": d.name, "load_assignment": object{"cluster_name": d.name, "endpoints": []object{{"lb_endpoints": []object{endpoint}}}},
		})
	}
	return []object{listener}, clusters
}

// TestSandwich: Envoy is told by PROXY protocol whose connection it has and where it was
// to go, and what it sends on comes to the server with its own identity.
func TestSandwich(t *testing.T) {
	m := newMesh(t, onehost.Options{})
	client := addPod(t, m.Nodes[0], "client", nil)
	server := addPod(t, m.Nodes[1], "server", map[string]string{"app": "web", "istio.io/use-waypoint": "wp"})
	wp := addPod(t, m.Nodes[0], "wp", map[string]string{"gateway.networking.k8s.io/gateway-name": "wp"})
	answer(t, server, 8080)
	service, pod := netip.MustParseAddrPort(vip+":80"), netip.AddrPortFrom(server.IP4(), 8080)
	e := newEnvoy(t, wp)
	listeners, clusters := e.sandwich(destination{"service", service, pod, false}, destination{"pod", pod, pod, false})
	e.start(t, listeners, clusters)
	putService(t, m, "istio.io/use-waypoint: wp")
	putWaypoint(t, m, wp, "all", "PROXY/15088")
	if err := m.PutPolicy("app", "waypoint-only", "  selector: {matchLabels: {app: web}}\n  rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/wp]}}]}]\n"); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitPolicy(t.Context(), "app/waypoint-only"); err != nil {
		t.Fatal(err)
	}
	for _, to := range []destination{{name: "service", asked: service}, {name: "pod", asked: pod}} {
		answered(t, client, to.asked, fmt.Sprintf("server from %s by %s", wp.IP4(), to.name))
		wholeAnswer(t, client, to.asked)
		eventually(t, "Envoy was told of the connection to "+to.asked.String(), func() error {
			for _, a := range e.log(t) {
				from, err := netip.ParseAddrPort(a.Source)
				if err == nil && a.Authority == to.asked.String() && a.Peer == identity("client") && from.Addr() == client.IP4() {
					return nil
				}
			}
			return fmt.Errorf("only %+v", e.log(t))
		})
	}
}
