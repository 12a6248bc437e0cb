package onehost_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// keyTraces are how the private keys that the programs make begin: PKCS #8 and SEC 1 of P-256, and PEM of anything.
func keyTraces() (all [][]byte) {
	all = append(all, []byte("PRIVATE KEY"))
	for _, prefix := range []string{"308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420", "30770201010420"} {
		der, err := hex.DecodeString(prefix)
		if err != nil {
			panic(err)
		}
		all = append(all, der, []byte(prefix), []byte(strings.ToUpper(prefix)))
		if whole := len(der) / 3 * 3; whole > 6 {
			all = append(all, []byte(base64.StdEncoding.EncodeToString(der[:whole])))
		}
	}
	return all
}

func keyIn(text []byte) bool {
	for _, trace := range keyTraces() {
		if bytes.Contains(text, trace) {
			return true
		}
	}
	return false
}

// A whole mesh on one machine, at its most talkative, writes no key anywhere: not to its logs, its dumps, or any file but
// the CA's own, and leaves no core behind.
func TestNoKeyIsWrittenAnywhere(t *testing.T) {
	m := newMesh(t, onehost.Options{TTL: 10 * time.Second, Env: []string{"RUST_LOG=trace"}, Args: []string{"--log-level", "debug"}})
	client, server := addPod(t, m.Nodes[0], "app", "client", nil), addPod(t, m.Nodes[1], "app", "server", nil)
	to := echo(t, server, 7)
	waitPods(t, m)
	for range 12 { // beyond a renewal
		if err := roundTripWithin(20*time.Second, client, to, "x"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
	}
	for _, n := range m.Nodes {
		for _, path := range []string{
			"/config_dump", "/config_dump?format=legacy", "/debug/certs", "/debug/entitlements", "/debug/connections", "/debug/pods", "/debug/pprof/goroutine?debug=2",
			"/debug/pprof/heap?debug=1", "/debug/pprof/cmdline",
		} {
			text, err := n.Admin(testContext(t), path)
			if err != nil || len(text) == 0 {
				t.Fatalf("%s: %d bytes, %v", path, len(text), err)
			}
			if keyIn(text) {
				t.Errorf("%s of %s has a key", path, n.Name)
			}
		}
		if err := n.QuitProxy(); err != nil { // with all its stacks in the log
			t.Fatal(err)
		}
	}
	looked, inCA := 0, 0
	err := filepath.WalkDir(m.Opts.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		looked++
		switch {
		case strings.HasPrefix(filepath.Base(path), "core"):
			t.Errorf("%s is a core", path)
		case !keyIn(text):
		case filepath.Dir(path) == filepath.Join(m.Opts.Dir, "controlplane"):
			inCA++
		default:
			t.Errorf("%s has a key", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if looked < 5 || inCA == 0 {
		t.Errorf("looked at %d files, found the CA's own key in %d: the search does not work", looked, inCA)
	}
	log, err := os.ReadFile(m.Nodes[0].ProxyLog())
	if err != nil || !bytes.Contains(log, []byte("SIGQUIT")) || !bytes.Contains(log, []byte("Certificate rotation completed")) {
		t.Errorf("the log of a proxy has no stacks or no rotation: %v", err)
	}
}
