package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

const (
	webPort    = 8080
	deniedPort = 9090
	vipPort    = 80
	ambient    = "demo"
	outside    = "legacy"
)

// story holds what the requests are made of.
type story struct {
	mesh    *onehost.Mesh
	out     io.Writer
	told    int
	servers []io.Closer

	client1, web1, old1 *onehost.Pod // on the first node
	client2, web2, old2 *onehost.Pod // on the second
	vip                 netip.AddrPort
}

func (s *story) close() {
	for _, srv := range s.servers {
		srv.Close() // the pods go away with it; nothing to report
	}
}

// tell sets the scene, makes the requests and shows the status of each node.
func (s *story) tell(ctx context.Context) error {
	if err := s.setScene(ctx); err != nil {
		return err
	}
	if err := s.requests(ctx); err != nil {
		return err
	}
	for _, n := range s.mesh.Nodes {
		text, code, err := n.Status(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(s.out, "\nnodeagent status on %s (exit status %d)\n%s", n.Name, code, text)
		if code != 0 {
			return fmt.Errorf("nodeagent status on %s: exit status %d, want 0", n.Name, code)
		}
	}
	return nil
}

// setScene makes namespaces, a Service and six pods: on each node a client and
// a web server in the mesh, and one pod outside it.
func (s *story) setScene(ctx context.Context) error {
	s.vip = netip.MustParseAddrPort("10.96.0.10:80")
	m := s.mesh
	err := errors.Join(
		m.PutNamespace(ambient, map[string]string{"istio.io/dataplane-mode": "ambient"}),
		m.PutNamespace(outside, nil),
		m.PutService(ambient, "web", s.vip, webPort, map[string]string{"app": "web"}),
	)
	if err != nil {
		return err
	}
	began := time.Now()
	for _, p := range []struct {
		pod          **onehost.Pod
		node         int
		ns, name, sa string
		app          string
	}{
		{&s.client1, 0, ambient, "client-1", "client", "client"},
		{&s.web1, 0, ambient, "web-1", "web", "web"},
		{&s.old1, 0, outside, "old-1", "old", "old"},
		{&s.client2, 1, ambient, "client-2", "client", "client"},
		{&s.web2, 1, ambient, "web-2", "web", "web"},
		{&s.old2, 1, outside, "old-2", "old", "old"},
	} {
		pod, err := m.Nodes[p.node].AddPod(ctx, onehost.PodSpec{
			Namespace: p.ns, Name: p.name, ServiceAccount: p.sa, Labels: map[string]string{"app": p.app},
		})
		if err != nil {
			return err
		}
		*p.pod = pod
	}
	for _, p := range []*onehost.Pod{s.web1, s.web2, s.old2} {
		for _, port := range []int{webPort, deniedPort} {
			srv, err := p.ServeHTTP(port)
			if err != nil {
				return err
			}
			s.servers = append(s.servers, srv)
		}
	}
	fmt.Fprintf(s.out, "six pods by CNI ADD in %d ms; waiting until both proxies know them\n", time.Since(began).Milliseconds())
	return m.WaitPods(ctx)
}

func (s *story) requests(ctx context.Context) error {
	to := func(p *onehost.Pod, port uint16) netip.AddrPort { return netip.AddrPortFrom(p.IP4(), port) }
	denyPolicy := "deny-client-on-9090"
	if err := s.mesh.PutPolicy(ambient, denyPolicy, denyPrincipalOnPort("client", deniedPort)); err != nil {
		return err
	}
	if err := s.mesh.WaitPolicy(ctx, ambient+"/"+denyPolicy); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "\n%-34s %s\n", "request", "what the proxies and the wire say")
	steps := []step{
		{what: "pod to pod across nodes", from: s.client1, to: s.web2, dst: to(s.web2, webPort), wire: wireTLS},
		{what: "pod to pod across nodes, IPv6", from: s.client1, to: s.web2, dst: netip.AddrPortFrom(s.web2.IP6(), webPort), wire: wireTLS},
		{what: "pod to Service, across nodes", from: s.client1, to: s.web2, dst: s.vip, wire: wireTLS},
		{what: "pod to Service, same node", from: s.client1, to: s.web1, dst: s.vip, wire: wireNone},
		{what: "pod to pod on one node", from: s.client1, to: s.web1, dst: to(s.web1, webPort), wire: wireNone},
		{what: "outside into the mesh", from: s.old1, to: s.web2, dst: to(s.web2, webPort), wire: wirePlain},
		{what: "mesh to outside", from: s.client1, to: s.old2, dst: to(s.old2, webPort), wire: wirePlain},
		{what: "denied by policy", from: s.client1, to: s.web2, dst: to(s.web2, deniedPort), wire: wireTLS, denied: true},
	}
	for _, st := range steps {
		if err := s.request(ctx, st); err != nil {
			return fmt.Errorf("%s: %w", st.what, err)
		}
	}
	return s.cutLive(ctx)
}

func denyPrincipalOnPort(sa string, port uint16) string {
	return strings.NewReplacer("SA", sa, "PORT", fmt.Sprint(port)).Replace(`  action: DENY
  rules:
  - from: [{source: {principals: ["cluster.local/ns/demo/sa/SA"]}}]
    to: [{operation: {ports: ["PORT"]}}]
`)
}

// invite prints what a reader can try on a mesh that is left running.
func (s *story) invite(dir string) {
	node := s.mesh.Nodes[0]
	fmt.Fprintf(s.out, `
The mesh is running. In another terminal, as root:
  ip netns exec %s curl -s %s            # through the Service, by mTLS
  ip netns exec %s curl -s %s:%d       # denied by policy
  ip netns exec %s-%s tcpdump -ni eth0 tcp port 15008   # see it travel
  ip netns exec %s-%s curl -s localhost:15000/config_dump
  bin/nodeagent status --run-dir %s -o wide
  edit the mesh: %s/kube/*.yaml is read as if it were the API server
Ctrl-C removes everything.
`, s.client1.NetnsName(), s.vip, s.client1.NetnsName(), s.web2.IP4(), deniedPort,
		prefix, node.Name, prefix, node.Name, node.RunDir(), dir)
}
