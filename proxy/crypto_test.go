package proxy_test

import (
	"crypto/fips140"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/proxy"
)

// What does the cryptography is said by the version, the dump and the metrics. A process is in FIPS mode from its start.
func TestWhoseCryptography(t *testing.T) {
	want := "go-crypto"
	if fips140.Enabled() {
		want = "go-fips140-"
	} else {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWhoseCryptography$", "-test.count=1", "-test.v")
		cmd.Env = append(os.Environ(), "GODEBUG=fips140=on")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestWhoseCryptography") {
			t.Errorf("in FIPS mode: %v\n%s", err, out)
		}
	}
	srv := newMesh(t, 1).nodes[0].srv
	page := func(at int, path string) string { return fetch(t, "http://"+srv.Addresses()[at]+path) }
	metrics := len(srv.Addresses()) - 2
	for where, text := range map[string]string{
		"\n" + want:                       proxy.VersionText("v1"),
		`"cryptoProvider": "` + want:      page(0, "/config_dump"),
		`warren_crypto{provider="` + want: page(metrics, "/metrics"),
	} {
		if !strings.Contains(text, where) {
			t.Errorf("%q is not in %.2000s", where, text)
		}
	}
}
