package file_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/fakeagent"
	"github.com/warren-mesh/warren/ca/source/file"
	"github.com/warren-mesh/warren/ca/svid"
)

var (
	td  = spiffeid.RequireTrustDomainFromString("td.test")
	bar = spiffeid.RequireFromPath(td, "/ns/foo/sa/bar")
)

func put(t *testing.T, dir string, a *fakeagent.Agent, id spiffeid.ID) {
	t.Helper()
	a.Rotate(id)
	s, err := a.Issue(id)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Roots()[0].Raw}))
	key, err := x509.ParsePKCS8PrivateKey(s.Key)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := marshalEC(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "tls.key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}))
	write(t, dir, "tls.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Chain[0].Raw}))
}

func write(t *testing.T, dir, name string, text []byte) {
	t.Helper()
	at := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(at+".new", text, 0o600), os.Rename(at+".new", at)); err != nil {
		t.Fatal(err)
	}
}

func TestReload(t *testing.T) {
	for name, below := range map[string]string{"own folder": "ns/foo/sa/bar", "the only one": "."} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, below)
			a, err := fakeagent.New(td, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			put(t, dir, a, bar)
			s, err := file.New(root, 5*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			m := svid.New(svid.Config{Watcher: s})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- m.Run(ctx) }()
			defer func() { cancel(); <-done }()
			l := m.Acquire(svid.Pod{UID: "u"}, bar)
			first, err := l.Identity(ctx)
			if err != nil {
				t.Fatal(err)
			}
			put(t, dir, a, bar)
			until(t, func() bool { i, err := l.Identity(ctx); return err == nil && i != first })
			// A writer in the middle of things, or a mistake, changes nothing.
			good, _ := l.Identity(ctx)
			write(t, dir, "tls.crt", []byte("-----BEGIN CERT"))
			until(t, func() bool { return m.Dump()[0].LastErr != nil })
			if i, err := l.Identity(ctx); i != good {
				t.Errorf("got %v, %v", i, err)
			}
			if err := os.Remove(filepath.Join(dir, "tls.crt")); err != nil {
				t.Fatal(err)
			}
			until(t, func() bool { return m.Dump()[0].Identity == nil })
			put(t, dir, a, bar)
			until(t, func() bool { _, err := l.Identity(ctx); return err == nil })
		})
	}
}

// Another identity's files are not used, wherever they are.
func TestOtherIdentity(t *testing.T) {
	root := t.TempDir()
	a, err := fakeagent.New(td, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(root, "ns/foo/sa/bar"), a, spiffeid.RequireFromPath(td, "/ns/foo/sa/other"))
	s, err := file.New(root, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	m := svid.New(svid.Config{Watcher: s, Wait: time.Second})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if i, err := m.Acquire(svid.Pod{UID: "u"}, bar).Identity(ctx); !errors.Is(err, svid.ErrNotEntitled) {
		t.Errorf("%v, %v", i, err)
	}
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not come")
		}
	}
}

func TestRelativeFolder(t *testing.T) {
	if _, err := file.New("certs", 0); err == nil || !strings.Contains(err.Error(), "certs") {
		t.Error(err)
	}
}

// marshalEC is the form that cert-manager writes by default.
func marshalEC(key any) ([]byte, error) {
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("not an ECDSA key")
	}
	return x509.MarshalECPrivateKey(ec)
}
