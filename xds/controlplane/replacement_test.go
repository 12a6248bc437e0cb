package controlplane

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
)

var (
	meshDomain = spiffeid.RequireTrustDomainFromString("cluster.local")
	caEpoch    = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// newCA is a self-signed one.
func newCA(t *testing.T) authority.Files {
	t.Helper()
	f, err := authority.Create(meshDomain, caEpoch)
	if err != nil {
		t.Fatal(err)
	}
	f.Roots = f.Cert
	return f
}

// below is an intermediate one.
func below(t *testing.T, root authority.Files) authority.Files {
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
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{Organization: []string{"intermediate"}}, NotBefore: caEpoch, NotAfter: caEpoch.Add(365 * 24 * time.Hour),
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
	return authority.Files{Cert: cert, Chain: cert, Roots: root.Cert, Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})}
}

func (w *world) plug(name string, f authority.Files) {
	w.t.Helper()
	put(w.t, w, name, map[string][]byte{"ca-cert.pem": f.Cert, "ca-key.pem": f.Key, "cert-chain.pem": f.Chain, "root-cert.pem": f.Roots})
}

// replica is one of several that read one Secret.
type replica struct {
	*rotation.Keeper
	t *testing.T
}

func (w *world) replica(log *lockedBuffer, now time.Time, overlap ...time.Duration) *replica {
	w.t.Helper()
	r := &replica{Keeper: w.keeper(log, append(overlap, time.Hour)[0]), t: w.t}
	if err := r.Load(w.t.Context(), now); err != nil {
		w.t.Fatal(err)
	}
	return r
}

// at is what the replica does at a time.
func (r *replica) at(now time.Time) { r.Compare(r.t.Context(), now) }

// is checks who signs, and who is trusted.
func (r *replica) is(when string, now time.Time, signer authority.Files, trusted ...authority.Files) {
	r.t.Helper()
	leaf, err := r.Authority().Serving([]string{"h"}, time.Minute, now)
	if err != nil {
		r.t.Fatalf("%s: %v", when, err)
	}
	block, _ := pem.Decode(signer.Cert)
	issuer, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := leaf.Leaf.CheckSignatureFrom(issuer); err != nil {
		r.t.Errorf("%s: not signed by the one that should: %v", when, err)
	}
	roots := string(r.Authority().RootsPEM())
	for _, f := range trusted {
		if !strings.Contains(roots, strings.TrimSpace(string(f.Roots))) {
			r.t.Errorf("%s: a root is missing", when)
		}
	}
	if n := strings.Count(roots, "BEGIN CERTIFICATE"); n != len(trusted) {
		r.t.Errorf("%s: %d roots, want %d", when, n, len(trusted))
	}
}

// record is what is kept of a rotation or a replacement, and whether there is something.
func (w *world) record() (rotation.Record, bool) {
	w.t.Helper()
	s, err := w.client.CoreV1().Secrets(ownNS).Get(w.t.Context(), rotationSecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return rotation.Record{}, false
	}
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := rotation.Decode(s.Data[rotationKey])
	if err != nil {
		w.t.Fatal(err)
	}
	return r, true
}

// A replaced CA goes on signing until everybody trusts the new one, and is trusted until
// nobody has a certificate of it: on all replicas, also on one that starts meanwhile.
func TestReplacement(t *testing.T) {
	w, log := newWorld(t), &lockedBuffer{}
	old, next := newCA(t), newCA(t)
	w.plug(pluggedSecret, old)
	now := caEpoch.Add(time.Hour)
	one, two := w.replica(log, now), w.replica(log, now)
	one.at(now)
	one.is("before", now, old, old)
	if r, _ := w.record(); r.Phase != rotation.Settled {
		t.Errorf("without need: %s", r.Phase)
	}
	w.plug(pluggedSecret, next)
	one.at(now)
	two.at(now.Add(time.Second))
	late := w.replica(log, now.Add(time.Minute))
	all := map[string]*replica{"one": one, "two": two, "late": late}
	for _, step := range []struct {
		after   time.Duration
		signer  authority.Files
		trusted []authority.Files
		note    string
	}{
		{time.Minute, old, []authority.Files{old, next}, "old one signs until 2026-01-01T02:00:00Z"},
		{59 * time.Minute, old, []authority.Files{old, next}, "old one signs"},
		{61 * time.Minute, next, []authority.Files{old, next}, "old one is trusted until 2026-01-01T03:00:00Z"},
		{119 * time.Minute, next, []authority.Files{old, next}, "trusted until"},
		{121 * time.Minute, next, []authority.Files{next}, ""},
		{1210 * time.Minute, next, []authority.Files{next}, ""},
	} {
		for name, r := range all {
			r.at(now.Add(step.after))
			r.is(name+" after "+step.after.String(), now.Add(step.after), step.signer, step.trusted...)
			if note := r.Note(); !strings.Contains(note, step.note) || (note == "") != (step.note == "") {
				t.Errorf("%s after %s: %q, want %q", name, step.after, note, step.note)
			}
			if why := r.Differs(); why != "" {
				t.Errorf("%s after %s: differs: %s", name, step.after, why)
			}
		}
		if r, _ := w.record(); (len(r.Other.Key) > 0) != (step.note != "") {
			t.Errorf("after %s the old key is there: %v", step.after, len(r.Other.Key) > 0)
		}
	}
	if text := log.String(); strings.Contains(text, "PRIVATE") || strings.Contains(text, string(bytes.TrimSpace(old.Key))) {
		t.Error("a key is in the log")
	}
	// And once more, the Secret of the first being there.
	w.plug(pluggedSecret, old)
	two.at(now.Add(100 * time.Hour))
	two.is("again", now.Add(100*time.Hour), next, next, old)
}

// What is another way of being replaced.
func TestReplacementOtherwise(t *testing.T) {
	now := caEpoch.Add(time.Hour)
	begin := func(t *testing.T, f authority.Files) (*world, *replica) {
		w := newWorld(t)
		w.plug(ownSecret, f)
		return w, w.replica(&lockedBuffer{}, now)
	}
	t.Run("a root that everybody has", func(t *testing.T) {
		root := newCA(t)
		a, b := below(t, root), below(t, root)
		w, r := begin(t, a)
		w.plug(ownSecret, b)
		r.at(now)
		r.is("at once", now, b, root)
		w.plug(ownSecret, a)
		r.at(now.Add(time.Minute))
		r.is("and back at once", now.Add(time.Minute), a, root)
	})
	t.Run("another one of a root that is on its way", func(t *testing.T) {
		f, root := newCA(t), newCA(t)
		w, r := begin(t, f)
		w.plug(ownSecret, below(t, root))
		r.at(now)
		b := below(t, root)
		w.plug(ownSecret, b)
		for _, after := range []time.Duration{time.Minute, 60 * time.Minute} {
			r.at(now.Add(after)) // its hour begins a minute after the first one's
			r.is("on its way", now.Add(after), f, f, root)
		}
		r.at(now.Add(62 * time.Minute))
		r.is("after an hour", now.Add(62*time.Minute), b, f, root)
		again := below(t, root)
		w.plug(ownSecret, again)
		r.at(now.Add(63 * time.Minute))
		r.is("and then at once", now.Add(63*time.Minute), again, f, root)
	})
	t.Run("another list of roots", func(t *testing.T) {
		f, other := newCA(t), newCA(t)
		w, r := begin(t, f)
		f.Roots = append(bytes.Clone(f.Cert), other.Cert...)
		w.plug(ownSecret, f)
		r.at(now)
		r.is("at once", now, f, authority.Files{Roots: f.Cert}, other)
		f.Roots = f.Cert
		w.plug(ownSecret, f)
		r.at(now)
		r.is("and back", now, f, f)
	})
	t.Run("and back", func(t *testing.T) {
		f, other := newCA(t), newCA(t)
		w, r := begin(t, f)
		w.plug(ownSecret, other)
		r.at(now)
		r.is("while it comes", now, f, f, other)
		w.plug(ownSecret, f)
		r.at(now)
		r.is("when it does not", now, f, f)
		w.plug(ownSecret, other)
		r.at(now.Add(50 * time.Minute))
		r.is("when it does after all", now.Add(90*time.Minute), f, f, other)
		r.at(now.Add(90 * time.Minute)) // an hour counts from now on
		r.is("later", now.Add(90*time.Minute), f, f, other)
	})
	t.Run("a third one in between", func(t *testing.T) {
		f, other, third := newCA(t), newCA(t), newCA(t)
		w, r := begin(t, f)
		w.plug(ownSecret, other)
		r.at(now)
		r.at(now.Add(61 * time.Minute))
		r.is("the second", now.Add(61*time.Minute), other, f, other)
		w.plug(ownSecret, third)
		r.at(now.Add(62 * time.Minute))
		r.is("the third comes", now.Add(62*time.Minute), other, f, other, third)
		r.at(now.Add(123 * time.Minute))
		r.is("the third", now.Add(123*time.Minute), third, f, other, third)
	})
	t.Run("plugged in beside our own", func(t *testing.T) {
		f, other := newCA(t), newCA(t)
		w, r := begin(t, f)
		w.plug(pluggedSecret, other)
		r.at(now)
		r.is("while it comes", now, f, f, other)
	})
	t.Run("at once", func(t *testing.T) {
		f, other := newCA(t), newCA(t)
		w := newWorld(t)
		w.plug(ownSecret, f)
		r := w.replica(&lockedBuffer{}, now, 0)
		w.plug(ownSecret, other)
		r.at(now)
		r.is("at once", now, other, other)
	})
	t.Run("an old one that is no good", func(t *testing.T) {
		root := newCA(t)
		a, other := below(t, root), newCA(t)
		w, r := begin(t, a)
		w.plug(ownSecret, other)
		later := caEpoch.Add(366 * 24 * time.Hour) // the intermediate has expired
		r.at(later)
		r.is("at once", later, other, root, other)
	})
	t.Run("a new one that is no good", func(t *testing.T) {
		f, other := newCA(t), newCA(t)
		w, r := begin(t, f)
		other.Key = f.Key
		w.plug(ownSecret, other)
		r.at(now)
		r.is("still", now, f, f)
		if why := r.Differs(); !strings.Contains(why, "is not used") {
			t.Errorf("differs: %q", why)
		}
		if r, _ := w.record(); r.Phase != rotation.Settled {
			t.Error("a replacement began")
		}
	})
	t.Run("nobody knows what was before", func(t *testing.T) {
		f, other := newCA(t), newCA(t)
		w, r := begin(t, f)
		w.plug(ownSecret, other)
		r.at(now)
		put(t, w, rotationSecret, map[string][]byte{rotationKey: []byte(`{"phase":"replacing","since":"yesterday"}`)})
		if err := w.keeper(&lockedBuffer{}, time.Hour).Load(t.Context(), now); err == nil || !strings.Contains(err.Error(), rotationSecret) {
			t.Errorf("a replica that starts: %v", err)
		}
		r.at(now)
		r.is("those that are there", now, f, f, other)
		if why := r.Differs(); !strings.Contains(why, rotationSecret) {
			t.Errorf("differs: %q", why)
		}
	})
}

// A whole control plane takes another CA without a restart: the ConfigMaps have both
// roots, then the new one signs, and in the end it is alone.
func TestReplacementReachesEverybody(t *testing.T) {
	w := newWorld(t, meshObjects()...)
	p := startWith(t, w, func(c *Config) { c.TTL, c.CAOverlap = 3*time.Second, 3*time.Second })
	eventually(t, "readiness", func() bool { ok, _ := p.ready(); return ok })
	eventually(t, "root", func() bool { return w.rootOf("app") != "" })
	old := w.rootOf("app")
	f, err := authority.Create(meshDomain, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f.Roots = f.Cert
	w.plug(pluggedSecret, f)
	eventually(t, "both roots", func() bool {
		now := w.rootOf("app")
		return strings.Contains(now, strings.TrimSpace(old)) && strings.Contains(now, strings.TrimSpace(string(f.Cert)))
	})
	cc := w.dial(p.cp.Addr().String(), "warren-controlplane.warren-system.svc")
	proxy := token("ztunnel", ownNS+"/ztunnel-1")
	block, _ := pem.Decode(f.Cert)
	issuer, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a certificate of the new one", func() bool {
		resp, err := sign(t, cc, p.as(proxy), "spiffe://cluster.local/ns/app/sa/web")
		if err != nil {
			t.Fatal(err)
		}
		leaf, _ := pem.Decode([]byte(resp.GetCertChain()[0]))
		cert, err := x509.ParseCertificate(leaf.Bytes)
		return err == nil && cert.CheckSignatureFrom(issuer) == nil
	})
	eventually(t, "the new root alone", func() bool { return strings.TrimSpace(w.rootOf("app")) == strings.TrimSpace(string(f.Cert)) })
	again := w.dial(p.cp.Addr().String(), "warren-controlplane.warren-system.svc")
	if _, err := sign(t, again, p.as(proxy), "spiffe://cluster.local/ns/app/sa/web"); err != nil {
		t.Errorf("who trusts the new one alone cannot ask: %v", err)
	}
}
