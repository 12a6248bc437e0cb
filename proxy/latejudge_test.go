package proxy_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/proxy"
)

// silentTunnel finishes a handshake with a pod's port 15008, and asks for nothing.
func silentTunnel(t *testing.T, from *pod, self *mtls.Identity, to *pod) *http2.Framer {
	t.Helper()
	c, err := from.Dial(t.Context(), "tcp", netip.AddrPortFrom(to.IP4, 15008).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	tc := tls.Client(c, mtls.Client(self, []spiffeid.ID{spiffeid.RequireFromString(to.identity())}))
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tc, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	fr := http2.NewFramer(tc, tc)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return fr
}

// statusOf asks for a connection and returns the answer's status.
func statusOf(t *testing.T, fr *http2.Framer, authority string) string {
	t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
	_ = enc.WriteField(hpack.HeaderField{Name: ":authority", Value: authority})
	if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return err.Error()
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok {
			return h.PseudoValue("status")
		}
	}
}

// A peer that lets a long time pass between its handshake and its first request is judged by what is known then: until
// then nobody knew its certificate who could have judged it again.
func TestLateFirstRequest(t *testing.T) {
	defer proxy.JudgeFirstRequestsAfter(0)()
	path := filepath.Join(t.TempDir(), "crl.pem")
	m, agent := agentMesh(t, func(c *proxy.Config) { c.CRLPath = path })
	n := m.nodes[0]
	server, outside := n.meshPod("server"), n.pod("outside")
	server.echo(8080)
	server.give(agent)
	good, bad := m.issue("spiffe://cluster.local/ns/default/sa/good"), m.issue("spiffe://cluster.local/ns/default/sa/bad")
	tunnels := map[string]*http2.Framer{
		"revoked": silentTunnel(t, outside, bad, server), "200": silentTunnel(t, outside, good, server),
	}
	crl, err := agent.Revoke(bad.Chain()[0])
	if err != nil {
		t.Fatal(err)
	}
	mark := n.logs.mark()
	replace(t, path, crl)
	until(t, "the list is loaded", func() bool { return bytes.Contains([]byte(n.logs.text()[mark:]), []byte("revocation lists loaded")) })
	for name, fr := range tunnels {
		if got := statusOf(t, fr, server.addr(8080)); (got == "200") != (name == "200") {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// What a connection on one node was made with counts as long as it lives, as it does behind a tunnel, whatever has
// replaced it since.
func TestRevokedAfterRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crl.pem")
	m, agent := agentMesh(t, func(c *proxy.Config) { c.CRLPath = path })
	client, near, far := m.nodes[0].meshPod("client"), m.nodes[0].meshPod("near"), m.nodes[1].meshPod("far")
	for _, p := range []*pod{client, near, far} {
		p.echo(8080)
		p.give(agent)
	}
	here, there := hold(t, client, near), hold(t, client, far)
	defer here.Close()
	defer there.Close()
	id := spiffeid.RequireFromString(client.identity())
	old, err := agent.Issue(id)
	if err != nil {
		t.Fatal(err)
	}
	serial := old.Chain[0].SerialNumber
	agent.Rotate(id)
	until(t, "the client has another certificate", func() bool {
		for _, c := range m.nodes[0].srv.Certs().Dump() {
			if c.ID == id && c.Identity != nil && c.Identity.Chain()[0].SerialNumber.Cmp(serial) != 0 {
				return true
			}
		}
		return false
	})
	after := hold(t, client, near)
	defer after.Close()
	crl, err := agent.Revoke(old.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	replace(t, path, crl)
	mustBeCut(t, there)
	mustBeCut(t, here)
	if _, err := io.WriteString(after, "x"); err != nil {
		t.Errorf("a connection made with the new certificate: %v", err)
	}
}
