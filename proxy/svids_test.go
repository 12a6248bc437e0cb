package proxy_test

import (
	"bufio"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/fakeagent"
	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/proxy"
)

// agentMesh is two nodes whose proxies get pods' certificates from one agent's Broker API.
func agentMesh(t *testing.T, change ...func(*proxy.Config)) (*mesh, *fakeagent.Agent) {
	t.Helper()
	return agentMeshFor(t, time.Hour, change...)
}

// agentMeshFor has certificates that last ttl, and no others after them.
func agentMeshFor(t *testing.T, ttl time.Duration, change ...func(*proxy.Config)) (*mesh, *fakeagent.Agent) {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	agent, err := fakeagent.New(td, ttl)
	if err != nil {
		t.Fatal(err)
	}
	agent.Give("self", spiffeid.RequireFromPath(td, "/warren/proxy"))
	at, stop, err := agent.Serve(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m := newMesh(t, 2, append(change, func(c *proxy.Config) {
		c.SVIDs = proxy.SVIDs{Source: "broker", Broker: at.Broker, Endpoint: at.Public}
	})...)
	m.issue = func(id string) *mtls.Identity {
		s, err := agent.Issue(spiffeid.RequireFromString(id))
		if err != nil {
			t.Fatal(err)
		}
		key, err := svid.ParseKey(s.Key)
		if err != nil {
			t.Fatal(err)
		}
		i, err := mtls.NewIdentity(s.ID, key, s.Chain, agent.Roots(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	t.Cleanup(stop) // after the proxies, before the check for leaks
	t.Cleanup(m.stop)
	return m, agent
}

func (p *pod) give(a *fakeagent.Agent) {
	a.Give("pod:"+p.uid, spiffeid.RequireFromString(p.identity()))
}

// A pod that the agent gives another identity, or none, speaks for nobody; one whose identity is taken back loses its
// connections in both directions, and gets nothing through the tunnels that there are.
func TestBrokerGivesAndTakes(t *testing.T) {
	m, agent := agentMesh(t)
	client, server, other := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server"), m.nodes[0].meshPod("other")
	server.echo(8080)
	client.give(agent)
	server.give(agent)
	agent.Give("pod:"+other.uid, spiffeid.RequireFromString(client.identity()))
	client.mustCall(server.addr(8080))
	t.Run("another identity", func(t *testing.T) { other.mustFail(server.addr(8080)) })
	for _, loser := range []*pod{client, server} {
		t.Run(loser.Name+" loses its identity", func(t *testing.T) {
			c, err := client.dial(server.addr(8080))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			lines := bufio.NewReader(c)
			if _, err := lines.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			agent.Give("pod:" + loser.uid)
			if rest, err := io.ReadAll(lines); err == nil {
				t.Errorf("the connection ended as if all were well, after %q", rest)
			}
			client.mustFail(server.addr(8080))
			loser.give(agent)
			until(t, "it has its identity again", func() bool {
				_, _, err := client.call(server.addr(8080), "x")
				return err == nil
			})
		})
	}
}

func TestSVIDSourceConfig(t *testing.T) {
	for name, want := range map[string]string{
		"SVID_SOURCE=spire":                             "spire",
		"SVID_SOURCE=broker":                            "SPIFFE_BROKER_SOCKET",
		"SVID_SOURCE=delegated":                         "SPIRE_ADMIN_SOCKET",
		"SVID_SOURCE=file":                              "SVID_DIR",
		"SVID_SOURCE=workload-api":                      "SPIFFE_ENDPOINT_SOCKET",
		"SVID_SOURCE=file SVID_DIR=/x SPIFFE_ID=me":     "SPIFFE_ID",
		"SVID_SOURCE=file SVID_DIR=/x SPIRE_AGENT_ID=/": "SPIRE_AGENT_ID",
		"SPIFFE_SOCKET_UID=-1":                          "SPIFFE_SOCKET_UID",
	} {
		if _, err := proxy.FromEnviron(strings.Fields("INPOD_UDS=/x XDS_ADDRESS=https://x:1 " + name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := proxy.FromEnviron(strings.Fields("XDS_ADDRESS=https://x:1 SVID_SOURCE=file SVID_DIR=/certs CA_ADDRESS="))
	if err != nil || c.SVIDs.Files != "/certs" {
		t.Errorf("%+v, %v", c.SVIDs, err)
	}
}

// What lets in peers of other trust domains is seen: how many roots, until when, and of whose.
func TestFederationIsSeen(t *testing.T) {
	m, agent := agentMesh(t)
	n := m.nodes[0]
	client := n.meshPod("client")
	agent.Federate(spiffeid.RequireTrustDomainFromString("else.test"), agent.Roots()...)
	client.give(agent)
	page := func(at int, path string) string { return fetch(t, "http://"+n.srv.Addresses()[at]+path) }
	until(t, "the metrics have it", func() bool {
		text := page(len(n.srv.Addresses())-2, "/metrics")
		return strings.Contains(text, `warren_svid_roots{trust_domain="else.test"} 1`) && strings.Contains(text, `warren_svid_root_expires_seconds{trust_domain="else.test"} `)
	})
	if text := page(0, "/debug/entitlements"); !strings.Contains(text, `"else.test": 1`) {
		t.Errorf("not in %s", text)
	}
}
