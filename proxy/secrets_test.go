package proxy_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/fakeagent"
	"github.com/warren-mesh/warren/proxy"
)

// traces are the forms in which a key, PKCS #8, could stand in a text: whole or its number alone.
func traces(t *testing.T, der []byte) map[string]string {
	t.Helper()
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	d, err := key.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{
		"PEM": "PRIVATE KEY", "raw": string(d), "hex": hex.EncodeToString(d), "HEX": strings.ToUpper(hex.EncodeToString(d)),
		"decimal": new(big.Int).SetBytes(d).String(), // as %v would print it
	}
	for k := range 3 { // wherever it begins in what is encoded
		part := d[k : k+((len(d)-k)/3)*3]
		out["base64"+string(rune('0'+k))] = base64.StdEncoding.EncodeToString(part)
		out["base64url"+string(rune('0'+k))] = base64.URLEncoding.EncodeToString(part)
	}
	return out
}

// look reports a trace of a key in a text.
func look(t *testing.T, where, text string, keys map[string]map[string]string) {
	t.Helper()
	for id, forms := range keys {
		for form, trace := range forms {
			if strings.Contains(text, trace) {
				t.Errorf("%s has the key of %s, as %s", where, id, form)
			}
		}
	}
}

// The search finds what it is for.
func TestKeysWouldBeFound(t *testing.T) {
	a, err := fakeagent.New(spiffeid.RequireTrustDomainFromString("cluster.local"), 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.Issue(spiffeid.RequireFromString("spiffe://cluster.local/ns/a/sa/b"))
	if err != nil {
		t.Fatal(err)
	}
	forms := traces(t, s.Key)
	for name, text := range map[string]string{
		"DER": string(s.Key), "base64": base64.StdEncoding.EncodeToString(s.Key), "hex": hex.EncodeToString(s.Key),
		"PEM": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: s.Key})), "shifted": base64.StdEncoding.EncodeToString(append([]byte("x"), s.Key...)),
	} {
		found := false
		for _, trace := range forms {
			found = found || strings.Contains(text, trace)
		}
		if !found {
			t.Errorf("not found as %s", name)
		}
	}
}

// Everything that a proxy says, at its most talkative and when everything goes wrong, has nothing of any key.
func TestNoKeyIsShown(t *testing.T) {
	m, agent := agentMesh(t, func(c *proxy.Config) { c.Log.Filter = "trace" })
	client, server, other := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server"), m.nodes[0].meshPod("other")
	server.echo(8080)
	keys := map[string]map[string]string{}
	remember := func(id string) {
		s, err := agent.Issue(spiffeid.RequireFromString(id))
		if err != nil {
			t.Fatal(err)
		}
		keys[id+" "+s.Chain[0].SerialNumber.String()] = traces(t, s.Key)
	}
	for _, p := range []*pod{client, server} {
		remember(p.identity())
		p.give(agent)
	}
	remember("spiffe://cluster.local/warren/proxy")
	agent.Give("pod:"+other.uid, spiffeid.RequireFromString(client.identity()))
	client.mustCall(server.addr(8080))
	other.mustFail(server.addr(8080))
	// A renewal, and one whose key does not fit.
	agent.Rotate(spiffeid.RequireFromString(client.identity()))
	remember(client.identity())
	client.mustCall(server.addr(8080))
	agent.Spoil(func(_ string, s *fakeagent.SVID) { s.Key = s.Key[:len(s.Key)-1] })
	until(t, "the broken key is refused", func() bool {
		return strings.Contains(m.nodes[0].logs.text(), "Certificate rotation failed")
	})
	for _, n := range m.nodes {
		for _, path := range []string{
			"/config_dump", "/config_dump?format=legacy", "/debug/certs", "/debug/entitlements", "/debug/connections", "/debug/pods",
			"/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1", "/debug/pprof/cmdline", "/debug/pprof/heap",
		} {
			look(t, path, fetch(t, "http://"+n.srv.Addresses()[0]+path), keys)
		}
		look(t, "the log of "+n.Name, n.logs.text(), keys)
		look(t, "the configuration", proxyDump(t, n), keys)
	}
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || len(text) == 0 {
		t.Fatalf("%s: %s, %d bytes, %v", url, resp.Status, len(text), err)
	}
	return string(text)
}

// proxyDump is every certificate printed in every way that the fmt package has.
func proxyDump(t *testing.T, n *node) string {
	t.Helper()
	var b bytes.Buffer
	for _, st := range n.srv.Certs().Dump() {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
			fmt.Fprintf(&b, verb+verb, st, st.Identity) //nolint:govet // on purpose
		}
	}
	return b.String()
}
