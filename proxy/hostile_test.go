package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/proxy"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/xds/workload"
)

// Connections to the proxy's own ports, from wherever and to whatever name of
// the pod, end at once and never come back around.
func TestNoLoops(t *testing.T) {
	m := newMesh(t, 2)
	client, server := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server")
	outside := m.nodes[0].pod("outside")
	for _, from := range []*pod{client, outside, server} {
		for name, to := range map[string]string{
			"another pod": server.IP4.String(), "itself": from.IP4.String(), "localhost": "127.0.0.1",
			"another pod, IPv6": server.IP6.String(), "localhost, IPv6": "::1",
		} {
			for _, port := range []string{"15000", "15001", "15006", "15008", "15020", "15021", "80"} {
				t.Run(fmt.Sprintf("%s to %s %s", from.Name, name, port), func(t *testing.T) {
					c, err := from.dial(net.JoinHostPort(to, port))
					if err != nil {
						return // refused: nobody is there
					}
					defer c.Close()
					_ = c.SetDeadline(time.Now().Add(3 * time.Second))
					_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
					_ = c.CloseWrite()
					b, err := io.ReadAll(c)
					if err, ok := errors.AsType[net.Error](err); ok && err.Timeout() {
						t.Errorf("still open after 3 s, %d bytes", len(b))
					}
					if len(b) > 0 && port != "15008" { // which may end with a TLS alert
						t.Errorf("answer %q", b)
					}
				})
			}
		}
	}
	until(t, "all connections are gone", func() bool { return m.nodes[0].srv.Tracked().Len()+m.nodes[1].srv.Tracked().Len() == 0 })
	for _, n := range m.nodes {
		if lines := strings.Count(n.logs.text(), `"scope":"access"`); lines > 400 {
			t.Errorf("%s: %d access lines: something went around", n.Name, lines)
		}
	}
}

// stranger is a client that speaks HBONE by itself, from a pod.
type stranger struct {
	pool *hbone.Pool
	key  hbone.Key
}

func (p *pod) stranger(t *testing.T, signer *fake.Signer, id, expected string, to netip.AddrPort, ttl ...time.Duration) *stranger {
	t.Helper()
	self := issue(t, signer, id, append(ttl, time.Hour)[0])
	peer := spiffeid.RequireFromString(expected)
	pool := hbone.NewPool(hbone.Config{}, func(ctx context.Context, k hbone.Key) (net.Conn, *tls.Config, error) {
		c, err := p.Dial(ctx, "tcp", k.Dst.String())
		if err != nil {
			return nil, nil, err
		}
		cfg := mtls.Client(self, []spiffeid.ID{peer})
		if self.ID().TrustDomain() != peer.TrustDomain() { // one that checks nothing
			cfg.VerifyConnection = nil
		}
		return c, cfg, nil
	})
	t.Cleanup(func() { pool.Close() })
	return &stranger{pool: pool, key: hbone.Key{Src: self.ID(), Expected: expected, Dst: to}}
}

// connect sends a CONNECT and returns how it was answered.
func (s *stranger) connect(t *testing.T, authority string, header ...[2]string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := s.pool.Open(ctx, s.key, hbone.Request{Authority: authority, Header: header})
	if err == nil {
		stream.Reset(nil)
	}
	return err
}

func issue(t *testing.T, signer *fake.Signer, id string, ttl time.Duration) *mtls.Identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{u}}, key)
	if err != nil {
		t.Fatal(err)
	}
	spiffe := spiffeid.RequireFromString(id)
	answer, err := signer.Sign(t.Context(), spiffe, pemOf("CERTIFICATE REQUEST", csr), ttl)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := mtls.ParsePEM([]byte(strings.Join(answer[:len(answer)-1], "")), 8)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := mtls.ParsePEM([]byte(answer[len(answer)-1]), 8)
	if err != nil {
		t.Fatal(err)
	}
	self, err := mtls.NewIdentity(spiffe, key, chain, roots, time.Now().Add(-10*time.Second)) // so short a one is good on receipt only
	if err != nil {
		t.Fatal(err)
	}
	return self
}

// What a CONNECT is answered when it asks for what it must not have.
func TestConnectAnswers(t *testing.T) {
	m := newMesh(t, 1)
	server := m.nodes[0].meshPod("server")
	outside := m.nodes[0].pod("outside")
	server.echo(8080)
	s := outside.stranger(t, m.ca, "spiffe://cluster.local/ns/default/sa/outside", server.identity(), netip.AddrPortFrom(server.IP4, 15008))
	tests := []struct {
		authority string
		status    int // 200: none
		text      string
	}{
		{server.addr(8080), 200, ""},
		{outside.addr(8080), 400, "ip mismatch"},
		{"127.0.0.1:8080", 400, "ip mismatch"},
		{"nonsense", 400, "no valid authority pseudo header"},
		{server.addr(15008), 503, "attempted recursive call to ourselves"},
		{server.addr(15001), 503, "attempted recursive call to ourselves"},
		{server.addr(15006), 503, "attempted recursive call to ourselves"},
		{server.addr(1), 503, "connection failed: connect: connection refused"},
		{"unknown.default.svc.cluster.local:80", 503, "no service or workload for hostname: unknown.default.svc.cluster.local"},
	}
	for _, tt := range tests {
		t.Run(tt.authority, func(t *testing.T) {
			mark := server.node.logs.mark()
			err := s.connect(t, tt.authority)
			if tt.status == 200 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if e, ok := errors.AsType[*hbone.StatusError](err); !ok || e.Code != tt.status {
				t.Fatalf("answer %v, want status %d", err, tt.status)
			}
			server.node.logs.access(t, mark, map[string]string{"direction": "inbound", "error": tt.text})
		})
	}
}

// Peers that are not who they should be, or do not speak the protocol, get
// nothing; the next honest one is served.
func TestImpostors(t *testing.T) {
	m := newMesh(t, 1)
	client, server := m.nodes[0].meshPod("client"), m.nodes[0].meshPod("server")
	outside := m.nodes[0].pod("outside")
	server.echo(8080)
	to := netip.AddrPortFrom(server.IP4, 15008)
	foreign, err := fake.New(spiffeid.RequireTrustDomainFromString("cluster.local"), nil)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := fake.New(spiffeid.RequireTrustDomainFromString("other.org"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*stranger{
		"another CA":           outside.stranger(t, foreign, "spiffe://cluster.local/ns/default/sa/outside", server.identity(), to),
		"another trust domain": outside.stranger(t, elsewhere, "spiffe://other.org/ns/default/sa/outside", server.identity(), to),
	} {
		t.Run(name, func(t *testing.T) {
			mark := server.node.logs.mark()
			if err := s.connect(t, server.addr(8080)); err == nil {
				t.Fatal("it was let in")
			}
			if name == "another CA" {
				return // the client hangs up first
			}
			server.node.logs.access(t, mark, map[string]string{"direction": "inbound", "message": "connection failed", "error": "tls handshake error: "})
		})
	}
	for name, text := range map[string]string{
		"garbage": "\x00\x01\x02garbage", "HTTP/1": "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "nothing": "", "half a handshake": "\x16\x03\x01\x02\x00\x01",
	} {
		t.Run(name, func(t *testing.T) {
			mark := server.node.logs.mark()
			c, err := outside.dial(to.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, text)
			_ = c.CloseWrite()
			if _, err := io.ReadAll(c); errors.Is(err, context.DeadlineExceeded) {
				t.Error("the proxy did not hang up")
			}
			server.node.logs.access(t, mark, map[string]string{"direction": "inbound", "message": "connection failed", "error": "tls handshake error: "})
		})
	}
	client.mustCall(server.addr(8080))
}

// A tunnel takes no new connections when the certificate that it was made with
// has ended, and ends.
func TestTunnelEndsWithCertificate(t *testing.T) {
	m := newMesh(t, 1)
	server, outside := m.nodes[0].meshPod("server"), m.nodes[0].pod("outside")
	server.echo(8080)
	s := outside.stranger(t, m.ca, "spiffe://cluster.local/ns/default/sa/outside", server.identity(), netip.AddrPortFrom(server.IP4, 15008), 2*time.Second)
	if err := s.connect(t, server.addr(8080)); err != nil {
		t.Fatal(err)
	}
	until(t, "the tunnel is gone", func() bool { return m.nodes[0].srv.Sockets() == 0 })
}

// A pod has only so many tunnels; who comes later is told at once, and served
// when there is room.
func TestTunnelsAreBounded(t *testing.T) {
	m := newMesh(t, 1)
	server, outside := m.nodes[0].meshPod("server"), m.nodes[0].pod("outside")
	m.nodes[0].srv.AddTunnels(proxy.MaxTunnels)
	full, err := outside.dial(server.addr(15008))
	if err == nil { // else it was told so quickly that connect says it
		defer full.Close()
		_, err = io.ReadAll(full)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("ended with %v, want a reset", err)
	}
	m.nodes[0].srv.AddTunnels(-1)
	room, err := outside.dial(server.addr(15008))
	if err != nil {
		t.Fatal(err)
	}
	defer room.Close()
	if err := tls.Client(room, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}).Handshake(); err != nil {
		t.Errorf("with room again: %v", err)
	}
	m.nodes[0].srv.AddTunnels(1 - proxy.MaxTunnels)
}

// A peer that hangs up in the middle of the handshake leaves nothing behind.
func TestFailedHandshakesLeaveNothing(t *testing.T) {
	m := newMesh(t, 1)
	client, peer := m.nodes[0].meshPod("client"), m.nodes[0].pod("peer")
	peer.w.Protocol = workload.HBONE
	m.apply(workload.Batch{Workloads: []*workload.Workload{peer.w}})
	met := make(chan struct{}, 1)
	peer.listen(15008, func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		met <- struct{}{}
	})
	client.mustFail(peer.addr(8080))
	<-met
	if n := m.nodes[0].srv.Dials(); n != 0 {
		t.Errorf("%d certificates are kept for handshakes that are over", n)
	}
}

// Headers of a peer reach the log only as what they are: text in quotes.
func TestHeadersCannotForgeLines(t *testing.T) {
	m := newMesh(t, 1)
	server := m.nodes[0].meshPod("server")
	outside := m.nodes[0].pod("outside")
	server.echo(8080)
	s := outside.stranger(t, m.ca, "spiffe://cluster.local/ns/default/sa/outside", server.identity(), netip.AddrPortFrom(server.IP4, 15008))
	mark := server.node.logs.mark()
	err := s.connect(t, server.addr(8080),
		[2]string{"baggage", `k8s.namespace.name=x" error="forged,k8s.deployment.name=y`}, [2]string{"forwarded", `for="1.2.3.4";host=a" b`})
	if err != nil {
		t.Fatal(err)
	}
	line := server.node.logs.access(t, mark, map[string]string{"direction": "inbound", "src.identity": "spiffe://cluster.local/ns/default/sa/outside"})
	if e, _ := line["error"].(string); strings.Contains(e, "forged") {
		t.Errorf("forged: %v", line)
	}
}

// What a peer calls itself makes only so many series: whoever has a certificate of the
// mesh can call itself something else in each request.
func TestToldSeriesOfPeersAreBounded(t *testing.T) {
	m := newMesh(t, 1)
	server, outside := m.nodes[0].meshPod("server"), m.nodes[0].pod("outside")
	m.apply(workload.Batch{RemovedAddresses: []string{outside.w.UID}}) // or its baggage would not be asked for
	s := outside.stranger(t, m.ca, "spiffe://cluster.local/ns/default/sa/outside", server.identity(), netip.AddrPortFrom(server.IP4, 15008))
	const more = 50
	for i := range proxy.MaxToldPod + more {
		_ = s.connect(t, server.addr(1), [2]string{"baggage", fmt.Sprintf("k8s.namespace.name=ns,k8s.deployment.name=%d", i)})
	}
	n, most := server.node.opened(t)
	if n != proxy.MaxToldPod+1 || most != more {
		t.Errorf("%d series, want %d and one for the rest; %v connections in the largest, want %d", n, proxy.MaxToldPod, most, more)
	}
}

// Who is refused is counted, and has no say in how.
func TestRefusedPeersHaveNoSay(t *testing.T) {
	m := newMesh(t, 1)
	server, outside := m.nodes[0].meshPod("server"), m.nodes[0].pod("outside")
	m.apply(workload.Batch{RemovedAddresses: []string{outside.w.UID}, Policies: []*workload.Policy{
		deny("all", workload.Match{Principals: principals(outside)}),
	}})
	s := outside.stranger(t, m.ca, outside.identity(), server.identity(), netip.AddrPortFrom(server.IP4, 15008))
	const calls = 5
	for i := range calls {
		mark := server.node.logs.mark()
		err := s.connect(t, server.addr(1), [2]string{"baggage", fmt.Sprintf("k8s.namespace.name=ns,k8s.deployment.name=%d", i)})
		if e, ok := errors.AsType[*hbone.StatusError](err); !ok || e.Code != 401 {
			t.Fatalf("answer %v", err)
		}
		server.node.logs.access(t, mark, map[string]string{"direction": "inbound", "src.identity": outside.identity(), "dst.workload": "server", "error": "policy"})
	}
	if n, most := server.node.opened(t); n != 1 || most != calls {
		t.Errorf("%d series, %v connections in the largest, want %d in one", n, most, calls)
	}
	if n := server.node.metric(t, "istio_tcp_connections_closed_total", "response_flags", "DENY"); n != calls {
		t.Errorf("%v connections were denied, want %d", n, calls)
	}
}

// opened is how many series of opened connections there are, and the largest.
func (n *node) opened(t *testing.T) (series int, most float64) {
	t.Helper()
	families, err := n.srv.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "istio_tcp_connections_opened_total" {
			continue
		}
		for _, s := range f.GetMetric() {
			series++
			most = max(most, s.GetCounter().GetValue())
		}
	}
	return series, most
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
