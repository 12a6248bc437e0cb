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
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/e2e/bench/ends"
)

// ServeEnds is the program that runs in server pods: the server end on addr
// and, if tlsAddr is not empty, the same over TLS with the certificate and key
// of certFile. It counts on the board in boardFile.
func ServeEnds(ctx context.Context, addr, tlsAddr, certFile, boardFile string) error {
	if err := raiseFDs(); err != nil {
		return err
	}
	board, err := ends.OpenBoard(boardFile)
	if err != nil {
		return err
	}
	if tlsAddr == "" {
		return ends.Serve(ctx, addr, board)
	}
	cert, err := tls.LoadX509KeyPair(certFile, certFile)
	if err != nil {
		return err
	}
	overTLS := make(chan error, 1)
	go func() {
		config := mtls.ServerAuth(func() (*tls.Certificate, error) { return &cert, nil })
		overTLS <- ends.ServeTLS(ctx, tlsAddr, config, board)
	}()
	return errors.Join(ends.Serve(ctx, addr, board), <-overTLS)
}

// dialTLS connects to the bed's TLS server from outside the mesh.
func (b *bed) dialTLS() func(context.Context) (net.Conn, error) {
	config := mtls.ToServer(func() ([]byte, error) { return os.ReadFile(filepath.Join(b.Opts.Dir, "tls-root.pem")) }, "bench", "")
	return func(ctx context.Context) (net.Conn, error) {
		c, err := b.outClient.Dial(ctx, netip.AddrPortFrom(b.outServer.IP4(), tlsPort))
		if err != nil {
			return nil, err
		}
		conn := tls.Client(c, config)
		if err := conn.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return conn, nil
	}
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
