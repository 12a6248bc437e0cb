package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
	"github.com/warren-mesh/warren/ca/server"
)

// intermediate is a CA below another one, in the layout of Istio's cacerts.
func intermediate(t *testing.T, root authority.Files) authority.Files {
	t.Helper()
	keyBlock, _ := pem.Decode(root.Key)
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	certBlock, _ := pem.Decode(root.Cert)
	parent, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{Organization: []string{"intermediate"}}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, own.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return authority.Files{Cert: cert, Chain: append(cert, root.Cert...), Roots: root.Cert, Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})}
}

func newRoot(t *testing.T) authority.Files {
	t.Helper()
	f, err := authority.Create(td, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f.Roots = f.Cert
	return f
}

// plug writes a set as kubelet does: into a folder of its own, to which a link is turned.
func plug(t *testing.T, dir string, f authority.Files) {
	t.Helper()
	set, err := os.MkdirTemp(dir, "..set")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"ca-cert.pem": f.Cert, "ca-key.pem": f.Key, "root-cert.pem": f.Roots, "cert-chain.pem": f.Chain} {
		if text == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(set, name), text, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	tmp := filepath.Join(dir, "..tmp")
	if err := os.Symlink(filepath.Base(set), tmp); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"} {
		if err := os.Symlink("..data/"+name, filepath.Join(dir, name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
}

// A plugged-in intermediate of another root comes with an overlap, one of the same root at once; the root for proxies
// follows, and nothing is written where others write.
func TestPluggedCA(t *testing.T) {
	s := &server.StateDir{Path: t.TempDir(), Plugged: t.TempDir(), TrustDomain: td}
	rootA, rootB := newRoot(t), newRoot(t)
	a1, a2, b := intermediate(t, rootA), intermediate(t, rootA), intermediate(t, rootB)
	plug(t, s.Plugged, a1)
	now := time.Now()
	k := keep(t, s, now)
	for _, step := range []struct {
		name   string
		plug   *authority.Files
		after  time.Duration
		signer authority.Files
		roots  int
		note   string
	}{
		{"at first", nil, 0, a1, 1, ""},
		{"another of this root", &a2, time.Minute, a2, 1, "the old one is trusted until"},
		{"after the overlap", nil, 2 * time.Hour, a2, 1, ""},
		{"of another root", &b, 2 * time.Hour, a2, 2, "the old one signs until"},
		{"half way", nil, 3*time.Hour + time.Minute, b, 2, "the old one is trusted until"},
		{"in the end", nil, 4*time.Hour + time.Minute, b, 1, ""},
	} {
		if step.plug != nil {
			plug(t, s.Plugged, *step.plug)
		}
		k.Compare(t.Context(), now.Add(step.after))
		again := keep(t, s, now.Add(step.after))
		for _, one := range []*rotation.Keeper{k, again} {
			if one.Authority().ID() != authority.CertID(step.signer.Cert) || roots(t, s.Path) != step.roots || !strings.Contains(one.Note(), step.note) || (one.Note() == "") != (step.note == "") || one.Differs() != "" {
				t.Errorf("%s: %d roots, %q, differs %q; signed by the right one: %v", step.name, roots(t, s.Path), one.Note(), one.Differs(), one.Authority().ID() == authority.CertID(step.signer.Cert))
			}
		}
	}
	if _, err := rotation.Prepare(read(t, s), nil, now); err == nil {
		t.Error("a plugged-in CA is rotated by hand")
	}
	if found, err := filepath.Glob(filepath.Join(s.Path, "ca-*")); err != nil || len(found) > 0 {
		t.Errorf("in the state folder: %v, %v", found, err)
	}
}

// What is half written, or does not belong together, is named and not used; the last good one stays.
func TestPluggedCAsThatAreRefused(t *testing.T) {
	root := newRoot(t)
	good, other := intermediate(t, root), intermediate(t, newRoot(t))
	for name, c := range map[string]struct {
		change func(f authority.Files) authority.Files
		want   []string
	}{
		"no key":              {func(f authority.Files) authority.Files { f.Key = nil; return f }, []string{"ca-key.pem is missing"}},
		"no certificate":      {func(f authority.Files) authority.Files { f.Cert = nil; return f }, []string{"ca-cert.pem"}},
		"another's key":       {func(f authority.Files) authority.Files { f.Key = good.Key; return f }, []string{"ca-key.pem is not the key of ca-cert.pem"}},
		"another's root":      {func(f authority.Files) authority.Files { f.Roots = root.Cert; return f }, []string{"ca-cert.pem does not lead to root-cert.pem"}},
		"no root":             {func(f authority.Files) authority.Files { f.Roots = []byte("\n"); return f }, []string{"root-cert.pem is missing"}},
		"half a certificate":  {func(f authority.Files) authority.Files { f.Cert = f.Cert[:len(f.Cert)/2]; return f }, []string{"ca-cert.pem"}},
		"half a key":          {func(f authority.Files) authority.Files { f.Key = f.Key[:len(f.Key)/2]; return f }, []string{"ca-key.pem"}},
		"half a root":         {func(f authority.Files) authority.Files { f.Roots = f.Roots[:len(f.Roots)/2]; return f }, []string{"root-cert.pem"}},
		"half a chain":        {func(f authority.Files) authority.Files { f.Chain = f.Chain[:len(f.Chain)/2]; return f }, []string{"cert-chain.pem"}},
		"an endless key":      {func(f authority.Files) authority.Files { f.Key = make([]byte, 1<<20); return f }, []string{"ca-key.pem", "larger than"}},
		"a leaf for a signer": {func(f authority.Files) authority.Files { f.Cert, f.Chain = leafOf(t, f), nil; return f }, []string{"ca-cert.pem may not sign"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server.StateDir{Path: t.TempDir(), Plugged: t.TempDir(), TrustDomain: td}
			plug(t, s.Plugged, good)
			now := time.Now()
			k := keep(t, s, now)
			plug(t, s.Plugged, c.change(other))
			k.Compare(t.Context(), now)
			for _, want := range append(c.want, s.Plugged) {
				if !strings.Contains(k.Differs(), want) {
					t.Errorf("%q does not say %q", k.Differs(), want)
				}
			}
			if strings.Contains(k.Differs(), "PRIVATE") {
				t.Error("the key is told")
			}
			if k.Authority().ID() != authority.CertID(good.Cert) || roots(t, s.Path) != 1 || k.Note() != "" {
				t.Error("the last good one is not in force")
			}
			plug(t, s.Plugged, other)
			k.Compare(t.Context(), now)
			if k.Differs() != "" || roots(t, s.Path) != 2 {
				t.Errorf("mended: %q", k.Differs())
			}
		})
	}
}

// leafOf is a certificate of f's that may not sign.
func leafOf(t *testing.T, f authority.Files) []byte {
	t.Helper()
	a, err := authority.Load(f, authority.Policy{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := a.Serving([]string{"x"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]})
}
