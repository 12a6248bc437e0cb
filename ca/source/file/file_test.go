package file_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
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

// world is a manager whose certificates are files.
func world(t *testing.T, dir string) (m *svid.Manager, withdrawn *atomic.Int64) {
	t.Helper()
	s, err := file.New(dir, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	withdrawn = &atomic.Int64{}
	m = svid.New(svid.Config{Watcher: s, Withdrawn: func(svid.Pod, spiffeid.ID, error) { withdrawn.Add(1) }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m, withdrawn
}

// A writer replaces the files one by one, in any order and however slowly.
func TestSlowWriter(t *testing.T) {
	names := []string{"tls.crt", "tls.key", "ca.crt"}
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {2, 1, 0}} {
		synctest.Test(t, func(t *testing.T) {
			dir, next := t.TempDir(), t.TempDir()
			a, err := fakeagent.New(td, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			put(t, dir, a, bar)
			m, _ := world(t, dir)
			l := m.Acquire(svid.Pod{UID: "u"}, bar)
			first, err := l.Identity(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			put(t, next, a, bar)
			for _, n := range order {
				text, err := os.ReadFile(filepath.Join(next, names[n]))
				if err != nil {
					t.Fatal(err)
				}
				write(t, dir, names[n], text)
				time.Sleep(10 * time.Second)
				if l.Current() == nil {
					t.Fatalf("%v: nothing is in use after %s", order, names[n])
				}
			}
			if l.Current() == first {
				t.Errorf("%v: the new key was not noticed", order)
			}
		})
	}
}

// Roots that are gone for a moment, in which a writer is in the middle, are not; those that are gone are not trusted any more.
func TestRootsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		a, err := fakeagent.New(td, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		put(t, dir, a, bar)
		m, _ := world(t, dir)
		l := m.Acquire(svid.Pod{UID: "u"}, bar)
		good, err := l.Identity(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		peer := good.Chain()
		accepted := func() bool {
			_, err := l.Current().VerifyPeer(peer, x509.ExtKeyUsageClientAuth, time.Now())
			return err == nil
		}
		text, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for n := range 4 { // the same moment again and again
			write(t, dir, "ca.crt", nil)
			time.Sleep(2 * time.Second) // one look
			write(t, dir, "ca.crt", text)
			for range 10 {
				if !accepted() {
					t.Fatalf("a writer's moment ended the trust, the %d. time", n+1)
				}
				time.Sleep(time.Second)
			}
		}
		write(t, dir, "ca.crt", nil)
		time.Sleep(2 * time.Second)
		if !accepted() {
			t.Error("not trusted after one look")
		}
		time.Sleep(2 * time.Second)
		if accepted() {
			t.Error("trusted without roots")
		}
	})
}

// A writer that is in the middle of the roots when a stream begins, because another of its files was no good before, takes
// none away.
func TestRootsGoBetweenStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, elsewhere := t.TempDir(), t.TempDir()
		read := func(dir, name string) []byte {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
		for _, at := range []string{elsewhere, dir} {
			a, err := fakeagent.New(td, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			put(t, at, a, bar)
		}
		cert, first := read(dir, "tls.crt"), read(dir, "ca.crt")
		both := slices.Concat(first, read(elsewhere, "ca.crt"))
		write(t, dir, "ca.crt", both)
		m, _ := world(t, dir)
		l := m.Acquire(svid.Pod{UID: "u"}, bar)
		if _, err := l.Identity(t.Context()); err != nil {
			t.Fatal(err)
		}
		write(t, dir, "tls.crt", cert[:20])
		time.Sleep(3 * time.Second)
		if m.Dump()[0].LastErr == nil {
			t.Fatal("the stream has not ended")
		}
		write(t, dir, "tls.crt", cert)
		write(t, dir, "ca.crt", first)
		for n := 0; !m.Dump()[0].InFlight; n++ { // until a stream has looked, and doubts
			if got := len(l.Current().Roots()); got != 2 || n > 10_000 {
				t.Fatalf("%d roots are trusted after the first look", got)
			}
			time.Sleep(100 * time.Millisecond)
		}
		write(t, dir, "ca.crt", both)
		for range 10 {
			if got := len(l.Current().Roots()); got != 2 {
				t.Fatalf("%d roots are trusted", got)
			}
			time.Sleep(time.Second)
		}
		write(t, dir, "ca.crt", first)
		time.Sleep(5 * time.Second)
		if got := len(l.Current().Roots()); got != 1 {
			t.Errorf("%d roots are trusted when one has gone for good", got)
		}
	})
}

// A file that is removed and made anew is not one that is taken away, which is noticed at the second look.
func TestUnlinkThenCreate(t *testing.T) {
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			a, err := fakeagent.New(td, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			put(t, dir, a, bar)
			m, withdrawn := world(t, dir)
			leases := []*svid.Lease{m.Acquire(svid.Pod{UID: "u1"}, bar), m.Acquire(svid.Pod{UID: "u2"}, bar)}
			for n, l := range leases {
				if _, err := l.Identity(t.Context()); err != nil {
					t.Fatal(n, err)
				}
			}
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // between looks
			remove := func() {
				t.Helper()
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				remove()
				time.Sleep(2 * time.Second) // one look
				write(t, dir, name, text)
				time.Sleep(4 * time.Second)
			}
			if withdrawn.Load() > 0 {
				t.Errorf("%s: taken back while it was made anew", name)
			}
			remove()
			time.Sleep(6 * time.Second)
			if withdrawn.Load() != 2 || leases[0].Current() != nil || leases[1].Current() != nil {
				t.Errorf("%s: %d taken back of 2 when it was gone", name, withdrawn.Load())
			}
			write(t, dir, name, text)
			for n, l := range leases {
				if _, err := l.Identity(t.Context()); err != nil {
					t.Error(n, err)
				}
			}
		})
	}
}

// Also a stream that finds nothing when it begins takes back, at the next one's look, what one before it gave.
func TestGoneBetweenStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		a, err := fakeagent.New(td, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		put(t, dir, a, bar)
		m, withdrawn := world(t, dir)
		l := m.Acquire(svid.Pod{UID: "u"}, bar)
		if _, err := l.Identity(t.Context()); err != nil {
			t.Fatal(err)
		}
		write(t, dir, "tls.crt", []byte("-----BEGIN CERT"))
		time.Sleep(10 * time.Second) // which ended the stream
		if l.Current() == nil {
			t.Fatal("a mistake takes back")
		}
		if err := os.Remove(filepath.Join(dir, "tls.crt")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if withdrawn.Load() != 1 || l.Current() != nil {
			t.Errorf("%d taken back, in use is %v", withdrawn.Load(), l.Current())
		}
	})
}
