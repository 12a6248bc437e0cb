package proxy_test

import (
	"net/netip"
	"testing"

	"github.com/warren-mesh/warren/xds/workload"
)

// The main path: captured to captured, on two nodes and on one, both families.
func TestCapturedToCaptured(t *testing.T) {
	m := newMesh(t, 2)
	client := m.nodes[0].meshPod("client")
	far := m.nodes[1].meshPod("far")
	near := m.nodes[0].meshPod("near")
	for _, server := range []*pod{far, near} {
		server.echo(8080)
		for _, ip := range []netip.Addr{server.IP4, server.IP6} {
			from := client.IP4
			if ip.Is6() {
				from = client.IP6
			}
			t.Run(server.Name+" "+ip.String(), func(t *testing.T) {
				cm, sm := client.node.logs.mark(), server.node.logs.mark()
				target := netip.AddrPortFrom(ip, 8080).String()
				if saw := client.mustCall(target); saw != from.String() {
					t.Errorf("the application saw %s, want the client's own %s", saw, from)
				}
				client.node.logs.access(t, cm, map[string]string{
					"direction": "outbound", "src.addr": from.String(), "src.workload": "client", "src.identity": client.identity(),
					"dst.addr": ip.String(), "dst.hbone_addr": target, "dst.workload": server.Name, "dst.identity": server.identity(), "error": "",
				})
				line := server.node.logs.access(t, sm, map[string]string{
					"direction": "inbound", "src.addr": from.String(), "src.identity": client.identity(), "dst.hbone_addr": target,
					"dst.identity": server.identity(), "error": "",
				})
				// An answer is the line that says the address, and the text.
				if sent, recv := line["bytes_sent"].(float64), line["bytes_recv"].(float64); recv != 11 || sent != 11+float64(len(from.String()))+1 {
					t.Errorf("bytes_sent %v, bytes_recv %v", sent, recv)
				}
			})
		}
	}
}

func TestPassthrough(t *testing.T) {
	m := newMesh(t, 2)
	inside := m.nodes[0].meshPod("inside")
	outside := m.nodes[1].pod("outside") // known to nobody
	inside.echo(8080)
	outside.echo(9090)
	t.Run("to outside", func(t *testing.T) {
		mark := inside.node.logs.mark()
		if saw := inside.mustCall(outside.addr(9090)); saw != inside.IP4.String() {
			t.Errorf("saw %s", saw)
		}
		inside.node.logs.access(t, mark, map[string]string{
			"direction": "outbound", "dst.addr": outside.addr(9090), "dst.hbone_addr": "", "src.identity": "", "dst.identity": "", "dst.workload": "", "error": "",
		})
	})
	t.Run("from outside", func(t *testing.T) {
		mark := inside.node.logs.mark()
		if saw := outside.mustCall(inside.addr(8080)); saw != outside.IP4.String() {
			t.Errorf("saw %s", saw)
		}
		line := inside.node.logs.access(t, mark, map[string]string{
			"direction": "inbound", "src.addr": outside.IP4.String(), "dst.addr": inside.addr(8080), "src.identity": "", "error": "",
		})
		if sent, recv := line["bytes_sent"].(float64), line["bytes_recv"].(float64); recv != 11 || sent <= recv {
			t.Errorf("bytes_sent %v, bytes_recv %v", sent, recv)
		}
	})
	t.Run("to a mesh pod of plaintext", func(t *testing.T) {
		plain := m.nodes[1].pod("plain")
		plain.echo(8080)
		m.apply(workload.Batch{Workloads: []*workload.Workload{plain.w}})
		inside.mustCall(plain.addr(8080))
	})
	t.Run("nobody listens", func(t *testing.T) {
		mark := inside.node.logs.mark()
		inside.mustFail(outside.addr(1))
		inside.node.logs.access(t, mark, map[string]string{"direction": "outbound", "error": "io error: connect: connection refused"})
	})
}
