package onehost_test

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// TestRootRotation walks a rotation of the CA's root from prepare to retire under
// traffic: each step is refused until no certificate needs the one before any more, no
// connection fails, and the proxies end with the new root alone. ROTATION_PROXY names
// another proxy to do this with, such as ztunnel.
func TestRootRotation(t *testing.T) {
	rotateRoot(t, newMesh(t, onehost.Options{TTL: rootTTL, Proxy: os.Getenv("ROTATION_PROXY")}))
}

// rootTTL is how long the certificates of a mesh live whose root is rotated: each step
// waits for as long.
const rootTTL = 8 * time.Second

func rotateRoot(t *testing.T, m *onehost.Mesh) {
	t.Helper()
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	back := addPod(t, m.Nodes[1], "app", "back", nil)
	dst, dstBack := echo(t, server, 7), echo(t, client, 7)
	waitPods(t, m)
	mustEcho(t, client, dst)
	mustEcho(t, back, dstBack)
	stops := []func() (int, []error){traffic(client, dst), traffic(back, dstBack)}

	old := caStatus(t, m).Signing.ID
	ca := func(step string) (string, error) { return m.CA(testContext(t), step, "--settle", "1s") }
	if text, err := ca("retire"); err == nil || !strings.Contains(text, "controlplane ca prepare") {
		t.Errorf("retire before prepare: %v %s", err, text)
	}
	if _, err := ca("prepare"); err != nil {
		t.Fatal(err)
	}
	next := caStatus(t, m).Other.ID
	for _, step := range []string{"activate", "retire"} {
		refused := map[string]bool{}
		eventually(t, time.Minute, step, func() error {
			text, err := ca(step)
			if err != nil {
				refused[refusal(text)] = true
			}
			return err
		})
		if !refused["SVIDs"] {
			t.Errorf("%s was refused for %v, and must be while SVIDs need what was before", step, refused)
		}
		if step == "activate" {
			eventually(t, time.Minute, "every proxy has certificates of the new root", func() error { return certificatesOf(t, m, next, old, next) })
		}
	}
	eventually(t, time.Minute, "every proxy has the new root alone", func() error { return certificatesOf(t, m, next, next) })
	if s := caStatus(t, m); s.Signing.ID != next || s.Phase != "" {
		t.Errorf("in the end: %+v", s)
	}
	for _, stop := range stops {
		if n, errs := stop(); len(errs) > 0 || n == 0 {
			t.Errorf("%d of %d connections failed while the root was rotated: %v\n%s", len(errs), n, errs, failures(m))
		} else {
			t.Logf("%d connections, none failed", n)
		}
	}
	// Whoever trusts the new root alone reaches the control plane, and is served by it.
	late := addPod(t, m.Nodes[0], "app", "late", nil)
	waitPods(t, m)
	eventually(t, time.Minute, "a pod that is new", func() error { return roundTrip(late, netip.AddrPortFrom(server.IP4(), 7), "x") })
}

func refusal(text string) string {
	for _, why := range []string{"SVIDs", "replica", "long enough"} {
		if strings.Contains(text, why) {
			return why
		}
	}
	return text
}

// caState is what `controlplane ca status --json` prints of what is looked at here.
type caState struct {
	Phase          string
	Signing, Other struct{ ID string }
}

func caStatus(t *testing.T, m *onehost.Mesh) (s caState) {
	t.Helper()
	text, err := m.CA(testContext(t), "status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(text), &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// certificatesOf says what keeps the proxies' certificates from being of one issuer, with
// exactly some roots beside them.
func certificatesOf(t *testing.T, m *onehost.Mesh, issuer string, roots ...string) error {
	t.Helper()
	for _, n := range m.Nodes {
		var d struct {
			Certificates []struct {
				Identity             string
				CertChain, RootCerts []struct{ PEM string }
			}
		}
		if err := n.ConfigDump(testContext(t), &d); err != nil {
			return err
		}
		if len(d.Certificates) == 0 {
			return fmt.Errorf("%s has no certificates", n.Name)
		}
		for _, c := range d.Certificates {
			got := map[string]*x509.Certificate{}
			for _, r := range c.RootCerts {
				cert := decode(t, r.PEM)
				got[caID(cert)] = cert
			}
			for _, id := range roots {
				if got[id] == nil {
					return fmt.Errorf("%s on %s does not have root %.8s", c.Identity, n.Name, id)
				}
			}
			if len(got) != len(roots) || len(c.CertChain) == 0 {
				return fmt.Errorf("%s on %s has %d roots and a chain of %d", c.Identity, n.Name, len(got), len(c.CertChain))
			}
			if err := decode(t, c.CertChain[0].PEM).CheckSignatureFrom(got[issuer]); err != nil {
				return fmt.Errorf("%s on %s is not signed by %.8s: %w", c.Identity, n.Name, issuer, err)
			}
		}
	}
	return nil
}

func decode(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		t.Fatalf("no certificate in %q", raw)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// caID is what `controlplane ca` calls a certificate.
func caID(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}
