package proxy_test

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/xds/workload"
)

// admin fetches a path from the administration port.
func (n *node) admin(t *testing.T, path string, v any) {
	t.Helper()
	resp, err := http.Get("http://" + n.srv.Addresses()[0] + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v", path, resp.Status, err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// identities are those that the node holds certificates of, or asks for.
func (n *node) identities(t *testing.T) string {
	t.Helper()
	var dump struct {
		Certificates []struct{ Identity, State string }
	}
	n.admin(t, "/config_dump", &dump)
	return fmt.Sprint(dump.Certificates)
}

// Certificates are fetched for the workloads of this node alone, before anybody
// needs them, and forgotten with the last of an identity.
func TestPrefetchAndForget(t *testing.T) {
	m := newMesh(t, 2)
	w := func(name, sa, node string) *workload.Workload {
		return &workload.Workload{
			UID: name, Name: name, Namespace: "default", ServiceAccount: sa, TrustDomain: "cluster.local", Node: node, Protocol: workload.HBONE,
		}
	}
	const here = "[{spiffe://cluster.local/ns/default/sa/a Available}]"
	m.apply(workload.Batch{Workloads: []*workload.Workload{w("1", "a", "node1"), w("2", "a", "node1"), w("3", "b", "elsewhere")}})
	until(t, "the certificate is there", func() bool { return m.nodes[0].identities(t) == here })
	if got := m.nodes[1].identities(t); got != "[]" {
		t.Errorf("node2 holds %s", got)
	}
	m.apply(workload.Batch{RemovedAddresses: []string{"1"}})
	until(t, "one is gone", func() bool { return m.nodes[0].srv.Store().View().WorkloadByUID("1") == nil })
	if got := m.nodes[0].identities(t); got != here {
		t.Errorf("with the second one left, node1 holds %s", got)
	}
	m.apply(workload.Batch{RemovedAddresses: []string{"2"}})
	until(t, "it is forgotten", func() bool { return m.nodes[0].identities(t) == "[]" })

	// Another cluster's node may have the name of this one.
	theirs, ours := w("3", "theirs", "node1"), w("4", "ours", "node1")
	theirs.ClusterID, ours.ClusterID = "east", m.nodes[0].cfg.ClusterID
	m.apply(workload.Batch{Workloads: []*workload.Workload{theirs, ours}})
	const mine = "[{spiffe://cluster.local/ns/default/sa/ours Available}]"
	until(t, "the certificate of this cluster's is there", func() bool { return strings.Contains(m.nodes[0].identities(t), mine[1:len(mine)-1]) })
	if got := m.nodes[0].identities(t); got != mine {
		t.Errorf("another cluster's, too: %s", got)
	}
}

// A pod whose identity changes holds the new one and no more the old one.
func TestIdentityChange(t *testing.T) {
	m := newMesh(t, 1)
	p := m.nodes[0].meshPod("p")
	until(t, "the certificate is there", func() bool { return strings.Contains(m.nodes[0].identities(t), p.identity()+" Available") })
	changed := *p.w
	changed.TrustDomain = "other.org"
	m.apply(workload.Batch{Workloads: []*workload.Workload{&changed}})
	until(t, "only the new identity is held", func() bool {
		got := m.nodes[0].identities(t)
		return strings.Contains(got, "spiffe://other.org/ns/default/sa/p") && !strings.Contains(got, "cluster.local")
	})
}

// What the node agent's status reads, over the socket that only root can use.
func TestAdminShowsPods(t *testing.T) {
	m := newMesh(t, 1)
	client, server := m.nodes[0].meshPod("client"), m.nodes[0].meshPod("server")
	server.echo(8080)
	l := open(t, client, server.addr(8080))
	defer l.Close()
	var pods []struct {
		UID, Name, State, Netns, Identity, CertState, Expires string
		Listeners                                             []string
		Inbound, Outbound                                     int
	}
	m.nodes[0].admin(t, "/debug/pods", &pods)
	if len(pods) != 2 || pods[0].UID != client.uid || pods[0].Outbound != 1 || pods[1].Inbound != 1 || pods[1].Netns != server.NS.ID().String() ||
		pods[1].Identity != server.identity() || pods[1].CertState != "Available" || pods[1].Expires == "" || fmt.Sprint(pods[1].Listeners) != "[15001 15006 15008 15053]" {
		t.Errorf("pods: %+v", pods)
	}
	var dump struct {
		WorkloadState map[string]struct {
			State       string
			Connections struct {
				Inbound, Outbound []struct{ ActualDst, OriginalDst, Protocol, Src string }
			}
		}
	}
	m.nodes[0].admin(t, "/config_dump", &dump)
	if out := dump.WorkloadState[client.uid].Connections.Outbound; len(out) != 1 || out[0].OriginalDst != server.addr(8080) || out[0].Protocol != "HBONE" {
		t.Errorf("outbound: %+v", out)
	}
	if in := dump.WorkloadState[server.uid].Connections.Inbound; len(in) != 1 || in[0].ActualDst != server.addr(8080) {
		t.Errorf("inbound: %+v", in)
	}
	until(t, "admin.sock is there, for root alone", func() bool {
		fi, err := os.Stat(filepath.Join(filepath.Dir(m.nodes[0].cfg.ZDSPath), "admin.sock"))
		return err == nil && fi.Mode() == fs.ModeSocket|0o600
	})
}

// Bytes are counted while a connection lives.
func TestLiveBytes(t *testing.T) {
	m := newMesh(t, 1)
	client, server := m.nodes[0].meshPod("client"), m.nodes[0].meshPod("server")
	server.echo(8080)
	l := open(t, client, server.addr(8080))
	defer l.Close()
	scrape := func() string {
		resp, err := http.Get("http://" + m.nodes[0].srv.Addresses()[len(m.nodes[0].srv.Addresses())-2] + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		defer http.DefaultClient.CloseIdleConnections()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	count := func(reporter, name string) (value string) {
		for line := range strings.Lines(scrape()) {
			if strings.HasPrefix(line, name) && strings.Contains(line, `reporter="`+reporter+`"`) {
				value = line[strings.LastIndexByte(line, ' ')+1 : len(line)-1]
			}
		}
		return value
	}
	sent := fmt.Sprint(len("ping\n") + len(client.IP4.String()) + 1)
	for _, reporter := range []string{"source", "destination"} {
		until(t, "both ends have counted", func() bool {
			return count(reporter, "istio_tcp_received_bytes_total") == "5" && count(reporter, "istio_tcp_sent_bytes_total") == sent
		})
		if open, closed := count(reporter, "istio_tcp_connections_opened_total"), count(reporter, "istio_tcp_connections_closed_total"); open != "1" || closed != "" {
			t.Errorf("%s: %s opened, %q closed", reporter, open, closed)
		}
	}
	l.Close()
	for _, reporter := range []string{"source", "destination"} {
		until(t, "both are closed", func() bool { return count(reporter, "istio_tcp_connections_closed_total") == "1" })
		if got := count(reporter, "istio_tcp_received_bytes_total"); got != "5" {
			t.Errorf("%s: %s bytes after the end", reporter, got)
		}
	}
}

// A pod may call itself, by its address and by its own service.
func TestHairpin(t *testing.T) {
	m := newMesh(t, 1)
	p := m.nodes[0].meshPod("p")
	key := workload.NamespacedHostname{Namespace: "default", Hostname: "self.default.svc.cluster.local"}
	w := *p.w
	w.Services = workload.Memberships{{Service: key}}
	vip := netip.MustParseAddr("10.96.0.11")
	m.apply(workload.Batch{Workloads: []*workload.Workload{&w}, Services: []*workload.Service{{
		Name: "self", Namespace: "default", Hostname: key.Hostname, VIPs: []workload.NetworkAddr{{Addr: vip}},
		Ports: workload.NewPortMap(workload.Port{Service: 80, Target: 8080}),
	}}})
	p.echo(8080)
	for _, to := range []string{p.addr(8080), netip.AddrPortFrom(p.IP6, 8080).String(), netip.AddrPortFrom(vip, 80).String(), "127.0.0.1:8080"} {
		p.mustCall(to)
	}
}

// Pods of one family only.
func TestOneFamily(t *testing.T) {
	m := newMesh(t, 2)
	for _, tt := range []struct {
		name string
		opt  nstest.PodOption
	}{{"v4", nstest.NoIPv6()}, {"v6", nstest.NoIPv4()}} {
		t.Run(tt.name, func(t *testing.T) {
			var pods []*pod
			for i, n := range m.nodes {
				p := n.pod(tt.name+fmt.Sprint(i), tt.opt)
				p.w.Protocol = workload.HBONE
				p.redirect()
				p.serve(n)
				m.apply(workload.Batch{Workloads: []*workload.Workload{p.w}})
				pods = append(pods, p)
			}
			pods[1].echo(8080)
			ip := pods[1].IP4
			if !ip.IsValid() {
				ip = pods[1].IP6
			}
			saw := pods[0].mustCall(net.JoinHostPort(ip.String(), "8080"))
			if want := pods[0].w.Addresses[0].String(); saw != want {
				t.Errorf("saw %s, want %s", saw, want)
			}
		})
	}
}

// The control plane does not know the pod: what it calls is called at once, as
// whom the node agent named; who calls it waits.
func TestBeforeTheControlPlaneKnowsThePod(t *testing.T) {
	for _, network := range []string{"", "another than NETWORK says"} {
		t.Run(network, func(t *testing.T) { testBeforeItIsKnown(t, network) })
	}
}

func testBeforeItIsKnown(t *testing.T, network string) {
	m := newMesh(t, 2)
	server, neighbour := m.nodes[1].meshPod("server"), m.nodes[0].meshPod("neighbour")
	server.w.Network, neighbour.w.Network = network, network
	m.apply(workload.Batch{Workloads: []*workload.Workload{server.w, neighbour.w}})
	server.echo(8080)
	outside := m.nodes[1].pod("outside")
	outside.echo(8080)
	late := m.nodes[0].pod("late")
	late.echo(8080)
	late.w.Protocol, late.w.Network = workload.HBONE, network
	late.redirect()
	late.serve(m.nodes[0])
	if saw := late.mustCall(server.addr(8080)); saw != late.IP4.String() {
		t.Errorf("the server saw %s", saw)
	}
	m.nodes[1].logs.access(t, 0, map[string]string{"src.identity": late.identity(), "direction": "inbound"}) // by its certificate
	late.mustCall(outside.addr(8080))

	c, err := outside.dial(late.addr(8080))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answered := make(chan error, 1)
	go func() {
		_, answer, err := talk(c, "x")
		if answer != "x" && err == nil {
			err = fmt.Errorf("answer %q", answer)
		}
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Errorf("a connection to a pod whose policies are not known ended: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	m.apply(workload.Batch{Workloads: []*workload.Workload{late.w}})
	if err := <-answered; err != nil {
		t.Error(err)
	}
}
