package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/xds/workload"
)

// sameNodeCount is how many connections a node's proxy has spliced.
func sameNodeCount(t *testing.T, n *node) (count int) {
	t.Helper()
	families, err := n.srv.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "warren_same_node_connections_total" {
			return int(f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	t.Fatal("no metric of spliced connections")
	return 0
}

// On one node bytes go from socket to socket, and everybody is told the same
// as across nodes.
func TestSameNode(t *testing.T) {
	m := newMesh(t, 1)
	n := m.nodes[0]
	client, server := n.meshPod("client"), n.meshPod("server")
	server.echo(8080)
	at := n.logs.mark()
	for _, dst := range []netip.AddrPort{netip.AddrPortFrom(server.IP4, 8080), netip.AddrPortFrom(server.IP6, 8080)} {
		want := client.IP4
		if dst.Addr().Is6() {
			want = client.IP6
		}
		if saw := client.mustCall(dst.String()); saw != want.String() {
			t.Errorf("the application sees %s, want %s", saw, want)
		}
	}
	if got := sameNodeCount(t, n); got != 2 {
		t.Errorf("%d connections were spliced, want 2", got)
	}
	for _, direction := range []string{"outbound", "inbound"} {
		line := n.logs.access(t, at, map[string]string{
			"direction": direction, "src.identity": client.identity(), "dst.identity": server.identity(), "via": "node", "error": "",
			"dst.hbone_addr": server.addr(8080), "src.workload": "client", "dst.workload": "server",
		})
		if sent, recv := line["bytes_sent"], line["bytes_recv"]; sent == recv || sent == 0.0 || recv == 0.0 {
			t.Errorf("%s: %v sent, %v received", direction, sent, recv)
		}
	}
}

func TestSameNodeOff(t *testing.T) {
	m := newMesh(t, 1, func(c *proxy.Config) { c.SameNode = false })
	client, server := m.nodes[0].meshPod("client"), m.nodes[0].meshPod("server")
	server.echo(8080)
	at := m.nodes[0].logs.mark()
	client.mustCall(server.addr(8080))
	m.nodes[0].logs.access(t, at, map[string]string{"direction": "inbound", "src.identity": client.identity(), "via": ""})
	if got := sameNodeCount(t, m.nodes[0]); got != 0 {
		t.Errorf("%d connections were spliced", got)
	}
}

func TestSameNodePolicies(t *testing.T) {
	m := newMesh(t, 1)
	n := m.nodes[0]
	good, bad, server := n.meshPod("good"), n.meshPod("bad"), n.meshPod("server")
	server.echo(8080)
	live, err := bad.dial(server.addr(8080))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if _, err := io.ReadFull(live, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	at := n.logs.mark()
	m.apply(workload.Batch{Policies: []*workload.Policy{deny("p", workload.Match{Principals: principals(bad)})}})
	if _, err := io.Copy(io.Discard, live); err == nil {
		t.Error("the live connection ended in good order, want it cut")
	}
	n.logs.access(t, at, map[string]string{"direction": "inbound", "via": "node", "error": "connection closed due to policy change"})
	at = n.logs.mark()
	bad.mustFail(server.addr(8080))
	n.logs.access(t, at, map[string]string{"direction": "inbound", "via": "node", "error": "explicitly denied by: default/p"})
	n.logs.access(t, at, map[string]string{"direction": "outbound", "via": "node", "error": "401"})
	good.mustCall(server.addr(8080))
	m.apply(workload.Batch{RemovedPolicies: []string{"default/p"}, Policies: []*workload.Policy{
		deny("q", workload.Match{SourceIPs: []netip.Prefix{netip.PrefixFrom(good.IP4, 32)}}),
	}})
	good.mustFail(server.addr(8080))
	bad.mustCall(server.addr(8080))
}

// A pod gives its socket another pod's address. The other's rights are not
// its own, and nobody is shown the forged address.
func TestSameNodeForgedSource(t *testing.T) {
	m := newMesh(t, 1)
	n := m.nodes[0]
	client, other, server := n.meshPod("client"), n.meshPod("other"), n.meshPod("server")
	server.echo(8080)
	err := client.NS.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: other.IP4.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	})
	if err != nil {
		t.Fatal(err)
	}
	forged := func() (saw string, err error) {
		var c net.Conn
		err = client.NS.Do(func() (err error) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: other.IP4.AsSlice()}}
			c, err = d.DialContext(ctx, "tcp", server.addr(8080))
			return err
		})
		if err != nil {
			return "", err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		saw, _, err = talk(c.(*net.TCPConn), "x")
		return saw, err
	}
	at := n.logs.mark()
	saw, err := forged()
	if err == nil && saw != client.IP4.String() {
		t.Errorf("the application sees %s; the caller is %s", saw, client.IP4)
	}
	own := map[string]string{"src.workload": "client", "src.identity": client.w.Identity().String(), "via": ""}
	own["direction"] = "outbound"
	n.logs.access(t, at, own) // it was the proxy that it reached, as itself
	own["direction"] = "inbound"
	if line := n.logs.access(t, at, own); strings.HasPrefix(fmt.Sprint(line["src.addr"]), other.IP4.String()) {
		t.Errorf("the server's side was shown the forged address: %v", line)
	}
	if got := sameNodeCount(t, n); got != 0 {
		t.Errorf("a connection from a forged address was spliced")
	}
	m.apply(workload.Batch{Policies: []*workload.Policy{{
		Name: "p", Namespace: "default", Scope: workload.ScopeNamespace, Action: workload.Allow,
		Rules: []workload.Rule{{Clauses: []workload.Clause{{Matches: []workload.Match{{SourceIPs: []netip.Prefix{netip.PrefixFrom(other.IP4, 32)}}}}}}},
	}}})
	other.mustCall(server.addr(8080))
	at = n.logs.mark()
	if saw, err := forged(); err == nil {
		t.Errorf("the forged address was let in; the application saw %s", saw)
	}
	own["error"] = "allow policies exist, but none allowed"
	n.logs.access(t, at, own)
}

// A pod of the same name has ended, and its successor is not served yet: what
// is meant for the successor must not leave the old namespace in the open.
func TestSameNodeStalePod(t *testing.T) {
	m := newMesh(t, 1)
	n := m.nodes[0]
	client, server := n.meshPod("client"), n.meshPod("server")
	successor := n.pod("successor")
	reached := make(chan struct{}, 1)
	successor.listen(8080, func(c *net.TCPConn) { reached <- struct{}{}; fmt.Fprintln(c, "reached") })
	moved := *server.w
	moved.Addresses = []netip.Addr{successor.IP4}
	m.apply(workload.Batch{Workloads: []*workload.Workload{&moved}})
	client.mustFail(successor.addr(8080))
	select {
	case <-reached:
		t.Error("the successor was reached without a handshake")
	default:
	}
	if got := sameNodeCount(t, n); got != 0 {
		t.Errorf("%d connections were spliced into a stale namespace", got)
	}
}

func TestSameNodeHalfCloseAndEnd(t *testing.T) {
	m := newMesh(t, 1)
	n := m.nodes[0]
	client, server := n.meshPod("client"), n.meshPod("server")
	server.listen(8080, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "got %d", len(b))
	})
	c, err := client.dial(server.addr(8080))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(make([]byte, 300_000))
	c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "got 300000" {
		t.Errorf("answer %q, %v", b, err)
	}
	held, err := client.dial(server.addr(8080))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	held.Write([]byte("x"))
	until(t, "the connection is known", func() bool { return strings.Contains(n.logs.text(), "connection opened") })
	// The destination is taken away: its connections go, also those from next door.
	if err := n.srv.Handler().Del(t.Context(), server.uid); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, held); err == nil {
		t.Error("the connection to a pod that is gone ended in good order")
	}
}

// What has a waypoint goes through it though both ends are next door, and so does
// what the waypoint, next door as well, sends on in its own name.
func TestSameNodeWaypoint(t *testing.T) {
	m := newMesh(t, 1)
	n := m.nodes[0]
	client, server := n.meshPod("client"), n.meshPod("server")
	server.echo(8080)
	var wp *gateway
	wp = n.gateway("waypoint", func(string) hop { return wp.to(server, 8080) })
	server.change(func(w *workload.Workload) {
		w.Waypoint = &workload.GatewayAddress{Address: workload.NetworkAddr{Addr: wp.IP4}, HBONEPort: 15008}
	})
	at := n.logs.mark()
	if saw := client.mustCall(server.addr(8080)); saw != wp.IP4.String() {
		t.Errorf("the application sees %s, the waypoint is %s", saw, wp.IP4)
	}
	if got := wp.last(t); got.peer != client.identity() || got.authority != server.addr(8080) {
		t.Errorf("the waypoint was asked %+v", got)
	}
	n.logs.access(t, at, map[string]string{"direction": "outbound", "dst.workload": "waypoint", "via": "", "error": ""})
	n.logs.access(t, at, map[string]string{"direction": "inbound", "src.identity": wp.identity(), "via": "", "error": ""})
	if got := sameNodeCount(t, n); got != 0 {
		t.Errorf("%d connections were spliced past the waypoint", got)
	}
	server.change(func(w *workload.Workload) { w.Waypoint = nil })
	client.mustCall(server.addr(8080))
	if got := sameNodeCount(t, n); got != 1 {
		t.Errorf("without a waypoint %d connections were spliced, want 1", got)
	}
}

// An endpoint on this node that has no certificate is left for another one, and rests, as
// it is over the wire; where there is no other, it is waited for.
func TestSameNodeRetries(t *testing.T) {
	m := newMesh(t, 2)
	n := m.nodes[0]
	const bad = "spiffe://cluster.local/ns/default/sa/bad"
	issue := make(chan struct{})
	m.ca.Before = func(ctx context.Context, id spiffeid.ID) error {
		if id.String() == bad {
			select {
			case <-issue:
			case <-ctx.Done():
			}
		}
		return ctx.Err()
	}
	client, server, good := n.meshPod("client"), n.meshPod("bad"), m.nodes[1].meshPod("good")
	server.echo(8080)
	good.echo(8080)
	two := m.group(server.w, good.w)
	for i := range 2 { // the second time it rests
		if _, answer, err := client.call(two.addr(), "x"); err != nil || answer != "x" {
			t.Fatalf("call %d: %q, %v", i, answer, err)
		}
	}
	if got := left(t, n, "timeout"); got != 1 {
		t.Errorf("left %d times, want once", got)
	}
	one := m.group(server.w)
	answered := make(chan error, 1)
	go func() {
		_, _, err := client.call(one.addr(), "x")
		answered <- err
	}()
	until(t, "it is waited for", func() bool { return n.srv.Tracked().Len() > 0 })
	close(issue)
	if err := <-answered; err != nil {
		t.Errorf("the only endpoint has its certificate now: %v", err)
	}
	if got := sameNodeCount(t, n); got != 1 {
		t.Errorf("%d connections were spliced, want 1", got)
	}
}

// Without a valid certificate of each end nothing goes by the short way: while one has
// not been given, at either end, and when one has expired with none to follow.
func TestSameNodeWithoutCertificates(t *testing.T) {
	m := newMesh(t, 1)
	n := m.nodes[0]
	late, latest := "spiffe://cluster.local/ns/default/sa/late", "spiffe://cluster.local/ns/default/sa/latest"
	gates := map[string]chan struct{}{late: make(chan struct{}), latest: make(chan struct{})}
	var refuse atomic.Bool
	m.ca.Before = func(ctx context.Context, id spiffeid.ID) error {
		if refuse.Load() {
			return status.Error(codes.PermissionDenied, "not any more")
		}
		if gate := gates[id.String()]; gate != nil {
			select {
			case <-gate:
			case <-ctx.Done():
			}
		}
		return ctx.Err()
	}
	n.meshPod("other") // who else is there changes nothing
	client, server := n.meshPod("late"), n.meshPod("latest")
	server.echo(8080)
	answered := make(chan error, 1)
	go func() {
		_, _, err := client.call(server.addr(8080), "x")
		answered <- err
	}()
	for _, id := range []string{late, latest} {
		until(t, "the connection is known", func() bool { return n.srv.Tracked().Len() > 0 })
		select {
		case err := <-answered:
			t.Fatalf("answered, %v, before %s had a certificate", err, id)
		case <-time.After(50 * time.Millisecond): // it could have been by now
		}
		if got := sameNodeCount(t, n); got != 0 {
			t.Fatalf("spliced before %s had a certificate", id)
		}
		close(gates[id])
	}
	if err := <-answered; err != nil {
		t.Fatalf("with both certificates: %v", err)
	}
	if got := sameNodeCount(t, n); got != 1 {
		t.Fatalf("%d connections were spliced, want 1", got)
	}

	const life = 3 * time.Second
	m.ca.TTL = life
	brief := n.meshPod("brief")
	brief.echo(8080)
	client.mustCall(brief.addr(8080))
	got := time.Now()
	refuse.Store(true)
	time.Sleep(time.Until(got.Add(life)))
	before := sameNodeCount(t, n)
	var wg sync.WaitGroup
	for _, pair := range [][2]*pod{{client, brief}, {brief, server}} {
		wg.Go(func() {
			c, err := pair[0].dial(pair[1].addr(8080))
			if err != nil {
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Second)) // the proxy waits longer for a certificate
			if _, _, err := talk(c, "x"); err == nil {
				t.Errorf("%s reaches %s with a certificate that has ended", pair[0].Name, pair[1].Name)
			}
		})
	}
	wg.Wait()
	if got := sameNodeCount(t, n); got != before {
		t.Errorf("%d connections were spliced after the certificate had ended", got-before)
	}
}
