package rotation_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
)

var (
	td    = spiffeid.RequireTrustDomainFromString("td.test")
	alice = spiffeid.RequireFromPath(td, "/ns/app/sa/alice")
	epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	errIO = errors.New("no space left")
)

// memory is a Store. budget is how many writes it takes before all others fail, as after a crash; negative is no end.
type memory struct {
	mu        sync.Mutex
	files     authority.Files
	plugged   bool
	record    []byte
	version   int
	published []byte
	replicas  map[string]rotation.Replica
	budget    int
	before    func()        // once, before a record is written
	longest   time.Duration // that is signed for; zero is the default
}

func newMemory(t testing.TB) *memory {
	t.Helper()
	return &memory{files: newCA(t), replicas: map[string]rotation.Replica{"of before": {Name: "of before", At: epoch, Ended: true}}, budget: -1}
}

func newCA(t testing.TB) authority.Files {
	t.Helper()
	f, err := authority.Create(td, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (m *memory) write(f func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.budget == 0 {
		return errIO
	}
	m.budget--
	f()
	return nil
}

func (m *memory) Read(context.Context) (rotation.Kept, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := rotation.Decode(m.record)
	k := rotation.Kept{Files: m.files, Plugged: m.plugged, Record: r, Version: strconv.Itoa(m.version)}
	if len(m.files.Cert) > 0 || err != nil {
		k.Name = "memory"
	}
	return k, err
}

func (m *memory) Create(_ context.Context, now time.Time) error {
	f, err := authority.Create(td, now)
	return errors.Join(err, m.write(func() { m.files = f }))
}

func (m *memory) PutBack(_ context.Context, f authority.Files) error {
	return m.write(func() { m.files = f })
}

func (m *memory) Install(_ context.Context, f authority.Files) error {
	return m.write(func() { m.files = f })
}

func (m *memory) WriteRecord(_ context.Context, k rotation.Kept, r rotation.Record) error {
	if before := m.before; before != nil {
		m.before = nil
		before()
	}
	text, err := r.Encode()
	won := false
	return errors.Join(err, m.write(func() {
		if won = k.Version == strconv.Itoa(m.version); won {
			m.record, m.version = text, m.version+1
		}
	}), lost(&won))
}

func lost(won *bool) error {
	if *won {
		return nil
	}
	return rotation.ErrChanged
}

func (m *memory) Publish(_ context.Context, roots []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.published = roots
	return nil
}

func (m *memory) Replicas(context.Context) (out []rotation.Replica, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.replicas {
		out = append(out, r)
	}
	return out, nil
}

func (m *memory) WriteReplica(_ context.Context, r rotation.Replica, remove []string) error {
	return m.write(func() {
		for _, name := range remove {
			delete(m.replicas, name)
		}
		m.replicas[r.Name] = r
	})
}

// replica is a keeper whose time is the test's.
type replica struct {
	*rotation.Keeper
	t testing.TB
}

func (m *memory) start(t testing.TB, name string, now time.Time) replica {
	t.Helper()
	policy := lifetimes
	policy.MaxTTL = m.longest
	k := rotation.New(rotation.Config{Store: m, Replica: name, Overlap: time.Hour, Lifetimes: policy})
	if err := k.Load(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	r := replica{k, t}
	r.at(now)
	return r
}

// at is what a replica does at a time.
func (r replica) at(now time.Time) {
	r.Compare(r.t.Context(), now)
	r.Save(r.t.Context(), now)
}

// sign has a certificate signed, and returns who signed it and how many roots go with it.
func (r replica) sign(now time.Time, ttl time.Duration) (issuer string, roots int) {
	r.t.Helper()
	leaf, err := r.ask(now, ttl)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.Authority().ID(), strings.Count(leaf.Chain[len(leaf.Chain)-1], "BEGIN CERTIFICATE")
}

func (r replica) ask(now time.Time, ttl time.Duration) (authority.Leaf, error) {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{alice.URL()}}, key)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.Sign(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), alice, ttl, now)
}

// step is one of `controlplane ca`.
func (m *memory) step(t testing.TB, name string, now time.Time) error {
	t.Helper()
	k, err := m.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all, err := m.Replicas(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var r rotation.Record
	switch name {
	case "prepare":
		r, err = rotation.Prepare(k, all, now)
	case "activate":
		r, err = rotation.Activate(k, all, settle, now)
	case "retire":
		r, err = rotation.Retire(k, all, now)
	}
	if err != nil {
		return err
	}
	return m.WriteRecord(t.Context(), k, r)
}

// lifetimes are short, so that replicas that vanish are not waited for all day.
var lifetimes = authority.Policy{DefaultTTL: time.Hour}

const settle = 2 * time.Minute
