package mtls_test

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

// use sets a policy until the test ends.
func use(t *testing.T, p mtls.Policy) {
	t.Helper()
	if err := mtls.Use(p); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mtls.Use(mtls.Policy{}); err != nil {
			t.Error(err)
		}
	})
}

// meet makes a connection between two identities; the client's configuration may be changed.
func meet(t *testing.T, change func(*tls.Config)) (tls.ConnectionState, error) {
	t.Helper()
	root := newPKI(t)
	server, client := root.identity(t, "/ns/a/sa/server"), root.identity(t, "/ns/a/sa/client")
	config := mtls.Client(client, []spiffeid.ID{server.ID()})
	change(config)
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		defer far.Close()
		_ = tls.Server(far, mtls.Server(func(context.Context) (*mtls.Identity, error) { return server, nil })).HandshakeContext(t.Context())
	}()
	c := tls.Client(near, config)
	err := c.HandshakeContext(t.Context())
	return c.ConnectionState(), err
}

func TestPolicies(t *testing.T) {
	classic := func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }
	old := func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }
	asIs := func(*tls.Config) {}
	tests := []struct {
		name   string
		policy mtls.Policy
		client func(*tls.Config)
		ok     bool
	}{
		{"standard", mtls.Policy{}, asIs, true},
		{"a classic client", mtls.Policy{}, classic, true},
		{"TLS 1.2", mtls.Policy{}, old, false},
		{"TLS 1.2 allowed", mtls.Policy{TLS12: true}, old, true},
		{"1.3 beside it", mtls.Policy{TLS12: true}, asIs, true},
		{"pqc", mtls.Policy{Compliance: mtls.PQC}, asIs, true},
		{"pqc and a classic client", mtls.Policy{Compliance: mtls.PQC}, classic, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			use(t, tt.policy)
			cs, err := meet(t, tt.client)
			if (err == nil) != tt.ok {
				t.Fatalf("%v, want success %v", err, tt.ok)
			}
			if tt.policy.Compliance == mtls.PQC && err == nil && cs.CurveID != tls.X25519MLKEM768 {
				t.Errorf("key exchange %v", cs.CurveID)
			}
		})
	}
}

func TestPoliciesThatCannotBe(t *testing.T) {
	for _, p := range []mtls.Policy{
		{Compliance: mtls.PQC, TLS12: true},
		{Compliance: mtls.FIPS}, // this program is not in FIPS mode
		{Compliance: "best"},
	} {
		if err := mtls.Use(p); err == nil {
			t.Errorf("took %+v", p)
		}
	}
}

// In FIPS mode, which a process is in from its start, handshakes go on and the provider says so.
func TestFIPSMode(t *testing.T) {
	if os.Getenv("WARREN_IN_FIPS_MODE") != "" {
		use(t, mtls.Policy{Compliance: mtls.FIPS})
		if _, err := meet(t, func(*tls.Config) {}); err != nil {
			t.Error(err)
		}
		use(t, mtls.Policy{Compliance: mtls.PQC}) // which is of its own validated module
		if cs, err := meet(t, func(*tls.Config) {}); err != nil || cs.CurveID != tls.X25519MLKEM768 {
			t.Errorf("pqc: key exchange %v, %v", cs.CurveID, err)
		}
		if p := mtls.CryptoProvider(); !strings.HasPrefix(p, "go-fips140-") {
			t.Errorf("provider %s", p)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFIPSMode$", "-test.count=1")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=on", "WARREN_IN_FIPS_MODE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
