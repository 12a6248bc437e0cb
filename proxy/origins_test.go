package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/fakeagent"
	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/server"
	"github.com/warren-mesh/warren/proxy"
)

// anybody may have anything, of a CA in a test.
type anybody struct{}

func (anybody) Authenticate(context.Context) (server.Caller, error) {
	return server.Caller{Node: "node"}, nil
}
func (anybody) Allowed(server.Caller, spiffeid.ID) error { return nil }

// serveCA serves our CA on a Unix socket.
func serveCA(t *testing.T) (address string, roots []byte) {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	f, err := authority.Create(td, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, err := authority.Load(f, authority.Policy{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.New(server.Config{Authority: a, TrustDomain: td, Authenticator: anybody{}, Authorizer: anybody{}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	s.Register(g)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return "unix://" + path, a.RootsPEM()
}

func put(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path+".new", text, 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// files writes what cert-manager would for each identity, and returns the folder and the root.
func files(t *testing.T, pods ...*pod) (dir string, roots []byte) {
	t.Helper()
	a, err := fakeagent.New(spiffeid.RequireTrustDomainFromString("cluster.local"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	dir, roots = t.TempDir(), text("CERTIFICATE", a.Roots()[0].Raw)
	for _, p := range pods {
		id := spiffeid.RequireFromString(p.identity())
		s, err := a.Issue(id)
		if err != nil {
			t.Fatal(err)
		}
		key, err := x509.ParsePKCS8PrivateKey(s.Key)
		if err != nil {
			t.Fatal(err)
		}
		sec1, err := x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
		if err != nil {
			t.Fatal(err)
		}
		at := filepath.Join(dir, filepath.FromSlash(id.Path()))
		put(t, filepath.Join(at, "tls.key"), text("EC PRIVATE KEY", sec1))
		put(t, filepath.Join(at, "ca.crt"), roots)
		put(t, filepath.Join(at, "tls.crt"), text("CERTIFICATE", s.Chain[0].Raw))
	}
	return dir, roots
}

// load has connections made and kept from one pod to another until stop, which says how it went.
func load(t *testing.T, from *pod, to string) (stop func() (made, failed int64)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var made, failed atomic.Int64
	var wg sync.WaitGroup
	for range 4 { // kept
		c, err := from.dial(to)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Time{})
		wg.Go(func() {
			defer c.Close()
			r := bufio.NewReader(c)
			_, err := r.ReadString('\n')
			for n := 0; err == nil && ctx.Err() == nil; n++ {
				line := fmt.Sprintf("%d\n", n)
				var got string
				if _, err = io.WriteString(c, line); err == nil {
					got, err = r.ReadString('\n')
				}
				if err == nil && got != line {
					err = fmt.Errorf("got %q", got)
				}
				time.Sleep(10 * time.Millisecond)
			}
			if err != nil {
				failed.Add(1)
				t.Errorf("a connection that was there: %v", err)
			}
		})
	}
	for range 2 { // new ones
		wg.Go(func() {
			for ctx.Err() == nil {
				made.Add(1)
				if _, answer, err := from.call(to, "x"); err != nil || answer != "x" {
					failed.Add(1)
					t.Errorf("a new connection: %q, %v", answer, err)
				}
			}
		})
	}
	return func() (int64, int64) {
		cancel()
		wg.Wait()
		return made.Load(), failed.Load()
	}
}

// A mesh moves from one CA to another and on to files, a node after the other, under load: no connection is lost.
func TestSourcesChangeUnderLoad(t *testing.T) {
	addressA, rootsA := serveCA(t)
	addressB, rootsB := serveCA(t)
	dir := t.TempDir()
	m := newMesh(t, 2, func(c *proxy.Config) {
		c.SVIDs.Source, c.SVIDs.Overlap, c.CA.Address = "istio", time.Hour, addressA
		c.SVIDFile = filepath.Join(dir, c.NodeName)
	})
	client, srv := m.nodes[0].meshPod("client"), m.nodes[1].meshPod("server")
	srv.echo(8080)
	client.mustCall(srv.addr(8080))
	fileDir, rootsC := files(t, client, srv)
	stop := load(t, client, srv.addr(8080))
	stop2 := load(t, client, srv.addr(8080))
	all := filepath.Join(dir, "roots.pem")
	put(t, all, []byte(string(rootsB)+string(rootsC)))
	settings := map[string]string{}
	set := func(n *node, lines string) {
		settings[n.Name] = "# step by step\nSVID_EXTRA_ROOTS=" + all + "\n" + lines
		put(t, filepath.Join(dir, n.Name), []byte(settings[n.Name]))
	}
	from := func(n *node, roots []byte) bool {
		want, err := mtls.ParsePEM(roots, 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range n.srv.Certs().Dump() {
			if st.Identity == nil || st.Identity.Chain()[0].CheckSignatureFrom(want[0]) != nil {
				return false
			}
		}
		return true
	}
	for _, n := range m.nodes {
		set(n, "")
		until(t, "extra roots are trusted", func() bool {
			d := n.srv.Certs().Dump()
			return len(d) > 0 && d[0].Identity != nil && len(d[0].Identity.Roots()) == 3
		})
		if !from(n, rootsA) {
			t.Fatal("the source changed by itself")
		}
	}
	for _, step := range []struct {
		lines string
		roots []byte
	}{{"CA_ADDRESS=" + addressB + "\n", rootsB}, {"SVID_SOURCE=file\nSVID_DIR=" + fileDir + "\n", rootsC}} {
		for _, n := range m.nodes {
			set(n, step.lines)
			until(t, "the new source is used", func() bool { return from(n, step.roots) })
			client.mustCall(srv.addr(8080))
		}
	}
	// Settings that are wrong change nothing, and are told.
	put(t, filepath.Join(dir, "node1"), []byte("SVID_SOURCE=nowhere\nNODE_NAME=x\n"))
	until(t, "the mistake is told", func() bool {
		return strings.Contains(m.nodes[0].logs.text(), "cannot be changed while the proxy runs")
	})
	client.mustCall(srv.addr(8080))
	made, failed := stop()
	made2, failed2 := stop2()
	t.Logf("%d connections through three sources, %d failed", made+made2, failed+failed2)
	if made+made2 < 10 {
		t.Errorf("only %d connections were made", made+made2)
	}
}

// An overlap that has begun ends when SVID_OVERLAP becomes shorter, though nothing else changes.
func TestTheOverlapIsCutShort(t *testing.T) {
	addressA, rootsA := serveCA(t)
	addressB, rootsB := serveCA(t)
	settings := filepath.Join(t.TempDir(), "svids")
	m := newMesh(t, 1, func(c *proxy.Config) {
		c.SVIDs.Source, c.SVIDs.Overlap, c.CA.Address, c.SVIDFile = "istio", 24*time.Hour, addressA, settings
	})
	n := m.nodes[0]
	n.meshPod("server").echo(8080)
	trusts := func(roots ...[]byte) bool {
		want, err := mtls.ParsePEM(bytes.Join(roots, nil), 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range n.srv.Certs().Dump() {
			if st.Identity == nil || len(st.Identity.Roots()) != len(want) {
				return false
			}
			for _, c := range want {
				if !slices.ContainsFunc(st.Identity.Roots(), c.Equal) {
					return false
				}
			}
		}
		return len(n.srv.Certs().Dump()) > 0
	}
	until(t, "A is used", func() bool { return trusts(rootsA) })
	put(t, settings, []byte("CA_ADDRESS="+addressB+"\n"))
	until(t, "B is used, and A trusted", func() bool { return trusts(rootsA, rootsB) })
	put(t, settings, []byte("CA_ADDRESS="+addressB+"\nSVID_OVERLAP=0s\n"))
	until(t, "A is trusted no more", func() bool { return trusts(rootsB) })
	if got := strings.Count(n.logs.text(), "certificates come from another source now"); got != 1 {
		t.Errorf("the source changed %d times", got)
	}
}
