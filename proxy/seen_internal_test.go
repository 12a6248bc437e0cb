package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/fakeagent"
	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/svid"
)

// TestWhatIsTheSourcesFault: the line about the source of certificates is about the source,
// not about one pod that it has nothing for, nor about what we gave up ourselves.
func TestWhatIsTheSourcesFault(t *testing.T) {
	m, _ := testMetrics()
	s := &Server{metrics: m, origin: &origin{}}
	o := &caObserver{s}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, "connected"}, {svid.ErrNotNeeded, "connected"}, {svid.ErrNotEntitled, "connected"}, {svid.ErrProcessEnded, "connected"},
		{errors.New("refused"), "failing"}, {svid.ErrNotEntitled, "failing"}, {nil, "connected"},
	} {
		o.Finished(spiffeid.ID{}, svid.WarmUp, 0, tt.err)
		if got := s.lines.ca.get().State; got != tt.want {
			t.Errorf("after %v: %s, want %s", tt.err, got, tt.want)
		}
	}
}

// TestTunnelEnd: whichever of the two ends' certificates is over first.
func TestTunnelEnd(t *testing.T) {
	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/app/sa/a")
	identity := func(ttl time.Duration) *mtls.Identity {
		agent, err := fakeagent.New(id.TrustDomain(), ttl)
		if err != nil {
			t.Fatal(err)
		}
		s, err := agent.Issue(id)
		if err != nil {
			t.Fatal(err)
		}
		key, err := svid.ParseKey(s.Key)
		if err != nil {
			t.Fatal(err)
		}
		i, err := mtls.NewIdentity(id, key, s.Chain, agent.Roots(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	short, long := identity(time.Minute), identity(time.Hour)
	for _, tt := range []struct{ peer, own, want *mtls.Identity }{{short, long, short}, {long, short, short}, {long, nil, long}} {
		if got := tunnelEnd(tt.peer.Chain()[0], tt.own); !got.Equal(tt.want.NotAfter()) {
			t.Errorf("ends at %s, want %s", got, tt.want.NotAfter())
		}
	}
}

// TestExtraRootsComeBack: a file that was away for a moment and is as it was is no alarm.
func TestExtraRootsComeBack(t *testing.T) {
	s := &Server{log: slog.New(slog.DiscardHandler), alarms: newAlarms(slog.New(slog.DiscardHandler))}
	path := filepath.Join(t.TempDir(), "roots.pem")
	text := []byte("what was loaded before\n")
	if s.loadExtraRoots(path, text); len(s.alarms.list()) != 1 {
		t.Fatal("no alarm without the file")
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if s.loadExtraRoots(path, text); len(s.alarms.list()) != 0 {
		t.Errorf("the alarm stays: %v", s.alarms.list())
	}
}

// TestFilesThatAreWrittenAnew: a writer that begins by emptying the file takes nothing from anybody; a file that stays empty does.
func TestFilesThatAreWrittenAnew(t *testing.T) {
	agent, err := fakeagent.New(spiffeid.RequireTrustDomainFromString("cluster.local"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &Server{log: slog.New(slog.DiscardHandler), alarms: newAlarms(slog.New(slog.DiscardHandler)), certs: svid.New(svid.Config{})}
	s.cfg.TrustDomain, s.cfg.CRLPath = "cluster.local", filepath.Join(dir, "crl.pem")
	roots, path := []byte{}, filepath.Join(dir, "roots.pem")
	write := func(path string, text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	look := func() (trusted, revoked bool) {
		t.Helper()
		roots = s.loadExtraRoots(path, roots)
		if _, err := s.loadRevocations(); err != nil {
			t.Fatal(err)
		}
		return len(roots) > 0, s.revoked.Len() > 0
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: agent.Roots()[0].Raw})
	crl := revocations(t)
	for round := range 2 {
		write(path, root)
		write(s.cfg.CRLPath, crl)
		if trusted, revoked := look(); !trusted || !revoked {
			t.Fatalf("round %d: trusted %v, revoked %v", round, trusted, revoked)
		}
		write(path, nil)
		write(s.cfg.CRLPath, []byte("\n"))
		if trusted, revoked := look(); !trusted || !revoked {
			t.Errorf("round %d: for a moment empty: trusted %v, revoked %v", round, trusted, revoked)
		}
	}
	if trusted, revoked := look(); trusted || revoked {
		t.Errorf("empty for good: trusted %v, revoked %v", trusted, revoked)
	}
}

// revocations is a list of one.
func revocations(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), SubjectKeyId: []byte{1}, KeyUsage: x509.KeyUsageCRLSign}
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(2), RevocationTime: time.Now()}}}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}
