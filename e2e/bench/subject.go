package bench

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
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/e2e/onehost"
)

const (
	plainPort = 7000
	tlsPort   = 7001
	meshNS    = "bench"
	plainNS   = "plain"
)

// subject is one way for the traffic to go.
type subject struct {
	name string
	dial dialer
	cpu  func() (float64, error) // CPU seconds that its proxies have used so far; zero without proxies
	mesh *mesh                   // nil: no proxy on the way
}

// mesh is a running mesh with a client and a server pod in it and a pair
// outside it.
type mesh struct {
	*onehost.Mesh
	client, server, plainClient, plainServer *onehost.Pod
}

func newMesh(ctx context.Context, c Config, prefix, proxy string) (_ *mesh, err error) {
	if err := onehost.RemoveLeftovers(prefix); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", prefix+"-")
	if err != nil {
		return nil, err
	}
	om, err := onehost.New(ctx, onehost.Options{Prefix: prefix, Dir: dir, Bins: c.Bins, Proxy: proxy, Env: []string{"RUST_LOG=warn"}})
	if err != nil {
		return nil, err
	}
	m := &mesh{Mesh: om}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	if err := errors.Join(m.PutNamespace(meshNS, map[string]string{"istio.io/dataplane-mode": "ambient"}), m.PutNamespace(plainNS, nil)); err != nil {
		return nil, err
	}
	for _, p := range []struct {
		pod      **onehost.Pod
		node     int
		ns, name string
	}{{&m.client, 0, meshNS, "client"}, {&m.server, 1, meshNS, "server"}, {&m.plainClient, 0, plainNS, "client"}, {&m.plainServer, 1, plainNS, "server"}} {
		if *p.pod, err = m.Nodes[p.node].AddPod(ctx, onehost.PodSpec{Namespace: p.ns, Name: p.name, ServiceAccount: p.name}); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cert, err := writeCert(dir)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		m.server.Run(self, "-serve", fmt.Sprintf(":%d", plainPort)),
		m.plainServer.Run(self, "-serve", fmt.Sprintf(":%d", plainPort)),
		m.plainServer.Run(self, "-serve", fmt.Sprintf(":%d", tlsPort), "-tls", cert),
	)
	if err != nil {
		return nil, err
	}
	return m, m.WaitPods(ctx)
}

func (m *mesh) close() error { return errors.Join(m.Close(), os.RemoveAll(m.Opts.Dir)) }

func (m *mesh) through(name string) subject {
	return subject{name: name, mesh: m, cpu: m.ProxyCPU, dial: func(ctx context.Context) (net.Conn, error) {
		return m.client.Dial(ctx, netip.AddrPortFrom(m.server.IP4(), plainPort))
	}}
}

func noCPU() (float64, error) { return 0, nil }

func (m *mesh) direct() subject {
	return subject{name: "direct TCP", cpu: noCPU, dial: func(ctx context.Context) (net.Conn, error) {
		return m.plainClient.Dial(ctx, netip.AddrPortFrom(m.plainServer.IP4(), plainPort))
	}}
}

func (m *mesh) plainTLS() subject {
	config := mtls.ToServer(func() ([]byte, error) { return os.ReadFile(filepath.Join(m.Opts.Dir, "tls-root.pem")) }, "bench", "")
	return subject{name: "plain TLS", cpu: noCPU, dial: func(ctx context.Context) (net.Conn, error) {
		c, err := m.plainClient.Dial(ctx, netip.AddrPortFrom(m.plainServer.IP4(), tlsPort))
		if err != nil {
			return nil, err
		}
		conn := tls.Client(c, config)
		if err := conn.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return conn, nil
	}}
}

// writeCert makes a self-signed certificate for the TLS server without a mesh.
func writeCert(dir string) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"bench"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return "", err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, "tls-root.pem"), cert, 0o644); err != nil {
		return "", err
	}
	file := filepath.Join(dir, "tls.pem")
	return file, os.WriteFile(file, append(cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...), 0o600)
}
