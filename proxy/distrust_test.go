package proxy_test

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/fakeagent"
	"github.com/warren-mesh/warren/proxy"
)

// replace has a file be another's from one moment to the next.
func replace(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// A certificate that is revoked opens nothing more and what it had opened ends, whichever end it is of, on two nodes and
// on one. Everybody else is left alone.
func TestRevokedWhileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crl.pem")
	m, agent := agentMesh(t, func(c *proxy.Config) { c.CRLPath = path })
	client, near, far := m.nodes[0].meshPod("client"), m.nodes[0].meshPod("near"), m.nodes[1].meshPod("far")
	bystander := m.nodes[0].meshPod("bystander")
	for _, p := range []*pod{client, near, far, bystander} {
		p.echo(8080)
		p.give(agent)
	}
	const rejections = "istio_crl_policy_rejections_total"
	for name, tt := range map[string]struct {
		loser, server *pod
		judge         *node // who notices, as which end
		reporter      string
	}{
		"the client, on two nodes": {client, far, m.nodes[1], "destination"},
		"the server, on two nodes": {far, far, m.nodes[0], "source"},
		"the client, on one node":  {client, near, m.nodes[0], "destination"},
		"the server, on one node":  {near, near, m.nodes[0], "source"},
	} {
		t.Run(name, func(t *testing.T) {
			before := tt.judge.metric(t, rejections, "reporter", tt.reporter)
			live, unmoved := hold(t, client, tt.server), hold(t, bystander, client)
			defer live.Close()
			defer unmoved.Close()
			mark := m.nodes[0].logs.mark()
			replace(t, path, list(t, agent, tt.loser))
			mustBeCut(t, live)
			m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "src.workload": "client", "dst.workload": tt.server.Name})
			until(t, "the cut is counted", func() bool { return tt.judge.metric(t, rejections, "reporter", tt.reporter) == before+1 })
			client.mustFail(tt.server.addr(8080))
			until(t, "the refusal is counted", func() bool { return tt.judge.metric(t, rejections, "reporter", tt.reporter) >= before+2 })
			if tt.loser != client {
				if _, err := io.WriteString(unmoved, "x"); err != nil {
					t.Errorf("a connection of others: %v", err)
				}
				bystander.mustCall(client.addr(8080))
			}
			replace(t, path, list(t, agent))
			until(t, "nobody is revoked", func() bool { _, _, err := client.call(tt.server.addr(8080), "x"); return err == nil })
		})
	}
}

// Connections outlive certificates, also where the agent has no new ones: a peer that is revoked then is cut off from
// pods whose own certificates have ended.
func TestRevokedAfterTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crl.pem")
	m, agent := agentMeshFor(t, 5*time.Second, func(c *proxy.Config) { c.CRLPath = path })
	client, server, bystander := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server"), m.nodes[1].meshPod("bystander")
	for _, p := range []*pod{client, server, bystander} {
		p.echo(8080)
		p.give(agent)
	}
	live, unmoved := hold(t, client, server), hold(t, client, bystander)
	defer live.Close()
	defer unmoved.Close()
	last, err := agent.Issue(spiffeid.RequireFromString(bystander.identity()))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(last.Chain[0].NotAfter.Add(time.Second)))
	for _, c := range []io.Writer{live, unmoved} {
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatalf("ended with the certificates: %v", err)
		}
	}
	replace(t, path, list(t, agent, server))
	mustBeCut(t, live)
	if _, err := io.WriteString(unmoved, "x"); err != nil {
		t.Errorf("a connection of others: %v", err)
	}
}

// A certificate that is revoked behind a gateway of another network ends what goes there, and nothing else.
func TestRevokedBehindAGateway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crl.pem")
	m, agent := agentMesh(t, farIsNode2, func(c *proxy.Config) { c.CRLPath = path })
	client, server, _, _ := m.twoNetworks()
	near := m.nodes[0].meshPod("near")
	for _, p := range []*pod{client, server, near} {
		p.echo(8080)
		p.give(agent)
	}
	client.mustCall("10.96.0.1:80")
	live, err := client.dial("10.96.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if _, err := bufio.NewReaderSize(live, 16).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	unmoved := hold(t, client, near)
	defer unmoved.Close()
	mark := m.nodes[0].logs.mark()
	replace(t, path, list(t, agent, server))
	mustBeCut(t, live)
	m.nodes[0].logs.access(t, mark, map[string]string{"direction": "outbound", "dst.workload": "server", "error": "revoked by CRL"})
	until(t, "it is counted", func() bool {
		return m.nodes[0].metric(t, "istio_crl_policy_rejections_total", "reporter", "source") == 1
	})
	client.mustFail("10.96.0.1:80")
	if _, err := io.WriteString(unmoved, "x"); err != nil {
		t.Errorf("a connection of others: %v", err)
	}
	client.mustCall(near.addr(8080))
	replace(t, path, list(t, agent))
	until(t, "nobody is revoked", func() bool { _, _, err := client.call("10.96.0.1:80", "x"); return err == nil })
}

// hold makes a connection that has answered once.
func hold(t *testing.T, client, server *pod) io.ReadWriteCloser {
	t.Helper()
	c, err := client.dial(server.addr(8080))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReaderSize(c, 16).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return c
}

// mustBeCut waits for the end of a connection, which must not look like one in good order.
func mustBeCut(t *testing.T, c io.Reader) {
	t.Helper()
	if rest, err := io.ReadAll(c); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("not cut: %v, after %q", err, rest)
	}
}

// list revokes the certificates of pods, as they are now.
func list(t *testing.T, agent *fakeagent.Agent, pods ...*pod) []byte {
	t.Helper()
	var revoked []byte
	for _, p := range pods {
		s, err := agent.Issue(spiffeid.RequireFromString(p.identity()))
		if err != nil {
			t.Fatal(err)
		}
		if revoked, err = agent.Revoke(s.Chain[0]); err != nil {
			t.Fatal(err)
		}
	}
	return revoked
}

// A root that is taken away takes with it the connections to those that it vouched for.
func TestRootTakenAway(t *testing.T) {
	m, agent := agentMesh(t)
	client, server := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server")
	server.echo(8080)
	client.give(agent)
	server.give(agent)
	live := hold(t, client, server)
	defer live.Close()
	if err := agent.AddRoot(); err != nil {
		t.Fatal(err)
	}
	client.mustCall(server.addr(8080))
	agent.DropRoot()
	mustBeCut(t, live)
	until(t, "the new root's certificates are in use", func() bool { _, _, err := client.call(server.addr(8080), "x"); return err == nil })
}
