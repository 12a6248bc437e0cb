package onehost_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/warren-mesh/warren/e2e/onehost"
)

const hbone = 15008

// issuer signs certificates that a test needs: good ones with the mesh's own
// CA, or with one that nobody trusts.
type issuer struct {
	cert *x509.Certificate
	key  any
}

func meshCA(t *testing.T, m *onehost.Mesh) issuer {
	t.Helper()
	dir := filepath.Dir(m.RootCert())
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca-cert.pem"), filepath.Join(dir, "ca-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return issuer{cert, pair.PrivateKey}
}

func untrustedCA(t *testing.T) issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return issuer{cert, key}
}

// leaf issues a certificate; change spoils the template of a good one.
func (i issuer) leaf(t *testing.T, id string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{uri}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if change != nil {
		change(tmpl)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, i.cert, key.Public(), i.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, i.cert.Raw}, PrivateKey: key}
}

// hello opens a tunnel to dst with cert and returns its frames once the server
// has shown that it accepts the client (its SETTINGS).
func hello(t *testing.T, from *onehost.Pod, dst netip.AddrPort, cert *tls.Certificate) (*http2.Framer, net.Conn, error) {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	raw := dial(t, from, dst)
	conn := tls.Client(raw, config)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := conn.Handshake(); err != nil {
		return nil, nil, err
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, nil, err
	}
	fr := http2.NewFramer(conn, conn)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := fr.WriteSettings(); err != nil {
		return nil, nil, err
	}
	f, err := fr.ReadFrame()
	if err != nil {
		return nil, nil, err
	}
	if _, ok := f.(*http2.SettingsFrame); !ok {
		return nil, nil, fmt.Errorf("the server began with %v", f)
	}
	return fr, conn, nil
}

// connect asks for a CONNECT and returns the status.
func connect(fr *http2.Framer, stream uint32, authority string) (string, error) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
	enc.WriteField(hpack.HeaderField{Name: ":authority", Value: authority})
	if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		return "", err
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return "", err
		}
		if id := f.Header().StreamID; id != 0 && id != stream {
			continue // the end of an earlier request
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status"), nil
		case *http2.RSTStreamFrame:
			return "", fmt.Errorf("reset: %v", f.ErrCode)
		case *http2.GoAwayFrame:
			return "", fmt.Errorf("go away: %v", f.ErrCode)
		}
	}
}

func TestPeerCertificates(t *testing.T) {
	m := sharedMesh(t)
	peer, server := addPod(t, m.Nodes[0], "plain", "peer", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	echo(t, server, 7)
	waitPods(t, m)
	mesh, nobody := meshCA(t, m), untrustedCA(t)
	const id = "spiffe://cluster.local/ns/app/sa/client"
	dst := netip.AddrPortFrom(server.IP4(), hbone)
	authority := netip.AddrPortFrom(server.IP4(), 7).String()
	for _, tc := range []struct {
		name string
		cert *tls.Certificate
		ok   bool
	}{
		{"good", ref(mesh.leaf(t, id, nil)), true},
		{"none", nil, false},
		{"untrusted CA", ref(nobody.leaf(t, id, nil)), false},
		{"wrong trust domain", ref(mesh.leaf(t, "spiffe://elsewhere/ns/app/sa/client", nil)), false},
		{"expired", ref(mesh.leaf(t, id, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })), false},
		{"without SPIFFE SAN", ref(mesh.leaf(t, id, func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"client"} })), false},
		{"two identities", ref(mesh.leaf(t, id, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0].JoinPath("x")) })), false},
		{"a CA's certificate", ref(mesh.leaf(t, id, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign })), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fr, conn, err := hello(t, peer, dst, tc.cert)
			if tc.ok != (err == nil) {
				t.Fatalf("accepted: %v (%v), want %v", err == nil, err, tc.ok)
			}
			if tc.ok {
				defer conn.Close()
				if status, err := connect(fr, 1, authority); status != "200" {
					t.Errorf("CONNECT: %q, %v", status, err)
				}
			}
		})
	}
}

func ref[T any](v T) *T { return &v }

// TestImpostorServer lets a pod outside the mesh pose as the destination:
// the client's proxy must not hand it one byte.
func TestImpostorServer(t *testing.T) {
	m := sharedMesh(t)
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	waitPods(t, m)
	mesh := meshCA(t, m)
	dst := netip.AddrPortFrom(server.IP4(), 7)
	// The pod's own proxy is taken away and an impostor takes its port.
	if err := m.Nodes[1].KillProxy(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(m.Nodes[1].StartProxy(testContext(t)), m.Nodes[1].WaitProxyReady(testContext(t))); err != nil {
			t.Fatal(err)
		}
	})
	cert := mesh.leaf(t, "spiffe://cluster.local/ns/app/sa/impostor", nil)
	asked := make(chan string, 16)
	s, err := server.Serve(hbone, func(c *net.TCPConn) {
		conn := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAnyClientCert})
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if conn.Handshake() == nil {
			buf := make([]byte, len(http2.ClientPreface))
			if n, _ := io.ReadFull(conn, buf); n > 0 {
				asked <- string(buf[:n])
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	logs := m.AccessLogs()
	mustRefuse(t, client, dst)
	select {
	case got := <-asked:
		t.Errorf("the impostor was sent %q", got)
	default:
	}
	eventually(t, 5*time.Second, "the access log names the identity", func() error {
		lines, err := logs.Lines()
		for _, l := range lines {
			if l.Direction == "outbound" && bytes.Contains([]byte(l.Err), []byte("impostor")) {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("lines: %+v", lines))
	})
}

// TestHostilePeers throws what a broken or evil peer may send at a pod's three
// listeners; the pod goes on being served and nothing is leaked.
func TestHostilePeers(t *testing.T) {
	m := sharedMesh(t)
	peer, client := addPod(t, m.Nodes[0], "plain", "peer", nil), addPod(t, m.Nodes[0], "app", "client", nil)
	server := addPod(t, m.Nodes[1], "app", "server", nil)
	app := echo(t, server, 7)
	waitPods(t, m)
	mustEcho(t, client, app)
	before := settled(t, m)
	cert := meshCA(t, m).leaf(t, "spiffe://cluster.local/ns/app/sa/client", nil)
	dst := netip.AddrPortFrom(server.IP4(), hbone)
	for _, tc := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"garbage", func(t *testing.T) {
			c := dial(t, peer, dst)
			c.ReadFrom(pattern(1<<20, 9))
			io.Copy(io.Discard, c)
		}},
		{"HTTP/1", func(t *testing.T) {
			c := dial(t, peer, dst)
			io.WriteString(c, "CONNECT "+app.String()+" HTTP/1.1\r\nHost: x\r\n\r\n")
			got, _ := io.ReadAll(c)
			if bytes.Contains(got, []byte("200")) {
				t.Errorf("answered %q", got)
			}
		}},
		{"half a handshake", func(t *testing.T) {
			for range 20 {
				c := dial(t, peer, dst)
				c.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3})
				c.Close()
			}
		}},
		{"HTTP/1 over TLS", func(t *testing.T) {
			conn := tls.Client(dial(t, peer, dst), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{cert}})
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			got, _ := io.ReadAll(conn)
			if bytes.Contains(got, []byte("HTTP/1.1 200")) {
				t.Errorf("answered %q", got)
			}
		}},
		{"floods resets", func(t *testing.T) {
			fr, conn, err := hello(t, peer, dst, &cert)
			if err != nil {
				t.Fatal(err)
			}
			var block bytes.Buffer
			enc := hpack.NewEncoder(&block)
			ended := false
			go io.Copy(io.Discard, conn)
			for id := uint32(1); id < 200_000; id += 2 {
				block.Reset()
				enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
				enc.WriteField(hpack.HeaderField{Name: ":authority", Value: app.String()})
				if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}) != nil ||
					fr.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
					ended = true
					break
				}
			}
			if !ended {
				t.Error("100,000 resets were taken on one tunnel")
			}
		}},
		{"floods pings and settings", func(t *testing.T) {
			fr, _, err := hello(t, peer, dst, &cert)
			if err != nil {
				t.Fatal(err)
			}
			for range 200_000 {
				if fr.WritePing(false, [8]byte{}) != nil || fr.WriteSettings() != nil {
					return
				}
			}
			t.Error("200,000 pings that nobody reads the answers of were taken on one tunnel")
		}},
		{"never reads", func(t *testing.T) {
			fr, conn, err := hello(t, peer, dst, &cert)
			if err != nil {
				t.Fatal(err)
			}
			if status, err := connect(fr, 1, app.String()); status != "200" {
				t.Fatalf("%q, %v", status, err)
			}
			conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
			for fr.WriteData(1, false, make([]byte, 16<<10)) == nil {
			}
		}},
		{"other destinations", func(t *testing.T) {
			fr, _, err := hello(t, peer, dst, &cert)
			if err != nil {
				t.Fatal(err)
			}
			for i, authority := range []string{
				netip.AddrPortFrom(client.IP4(), 7).String(), "127.0.0.1:7", "10.99.0.254:15012", "nonsense", ":7", "[::1]:7",
				netip.AddrPortFrom(server.IP4(), 15001).String(), netip.AddrPortFrom(server.IP4(), 15008).String(),
			} {
				status, err := connect(fr, uint32(1+2*i), authority)
				if status == "200" {
					t.Errorf("%s: status 200", authority)
				} else if status == "" {
					t.Errorf("%s: %v, want a status", authority, err)
				}
			}
		}},
		{"calls to the proxy's own ports", func(t *testing.T) {
			for _, port := range []uint16{15001, 15006} {
				mustRefuse(t, peer, netip.AddrPortFrom(server.IP4(), port))
				mustRefuse(t, client, netip.AddrPortFrom(server.IP4(), port))
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.do(t)
			mustEcho(t, client, app)
		})
	}
	noLeak(t, m, before)
}

// TestJunkOnSockets sends nonsense to every Unix socket of a node.
func TestJunkOnSockets(t *testing.T) {
	m := sharedMesh(t)
	n := m.Nodes[0]
	client, server := addPod(t, n, "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	dst := echo(t, server, 7)
	waitPods(t, m)
	proxyBefore := settled(t, m)
	agentBefore, err := n.AgentResources()
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := filepath.Glob(filepath.Join(n.RunDir(), "*.sock"))
	if err != nil || len(sockets) < 4 {
		t.Fatalf("sockets: %v, %v", sockets, err)
	}
	junk := [][]byte{{}, {0}, []byte("GET / HTTP/1.0\r\n\r\n"), []byte("{}"), []byte(`{"Version":1}`), []byte("{\"a\":"), make([]byte, 900), bytes.Repeat([]byte("x"), 60_000)}
	for _, s := range sockets {
		for _, network := range []string{"unix", "unixpacket"} {
			for _, j := range junk {
				c, err := net.DialTimeout(network, s, time.Second)
				if err != nil {
					break // a socket of the other type
				}
				c.SetDeadline(time.Now().Add(time.Second))
				c.Write(j)
				c.Close()
			}
		}
	}
	if err := n.CNIStatus(testContext(t)); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	eventually(t, 20*time.Second, "status is healthy", func() error { return healthy(n) })
	addPod(t, n, "app", "after", nil)
	mustEcho(t, client, dst)
	noLeak(t, m, proxyBefore)
	eventually(t, 20*time.Second, "the agent holds no more than before", func() error {
		now, err := n.AgentResources()
		if err == nil && (now.FDs > agentBefore.FDs+8 || now.Threads > agentBefore.Threads+slackThreads) {
			err = fmt.Errorf("%+v, before %+v", now, agentBefore)
		}
		return err
	})
}

// TestSocketPermissions: whoever can write to these sockets owns the node's pods.
func TestSocketPermissions(t *testing.T) {
	m := sharedMesh(t)
	for _, n := range m.Nodes {
		for _, name := range []string{"cni.sock", "status.sock", "ztunnel.sock", "admin.sock"} {
			info, err := os.Stat(filepath.Join(n.RunDir(), name))
			if err != nil {
				t.Error(err)
			} else if slices.Contains([]string{"cni.sock", "ztunnel.sock", "admin.sock"}, name) && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: mode %v, want root only", name, info.Mode())
			}
		}
	}
}
