package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestArguments(t *testing.T) {
	t.Setenv("XDS_ADDRESS", "")
	t.Setenv("LOCAL_XDS_PATH", "/no/such/file")
	for _, tt := range []struct {
		args     string
		code     int
		out, err string
	}{
		{"version", 0, "dev\ngo-", ""},
		{"help", 0, "usage: proxy", ""},
		{"proxy envoy", 2, "", "unknown arguments"},
		{"--version", 2, "", "unknown arguments"},
		{"proxy ztunnel", 1, "", "LOCAL_XDS_PATH: open /no/such/file"},
		{"proxy", 1, "", "LOCAL_XDS_PATH: open /no/such/file"},
		{"", 1, "", "LOCAL_XDS_PATH: open /no/such/file"},
	} {
		var out, errs bytes.Buffer
		if code := run(strings.Fields(tt.args), &out, &errs); code != tt.code || !strings.HasPrefix(out.String(), tt.out) || !strings.Contains(errs.String(), tt.err) {
			t.Errorf("%q: %d, out %q, err %q", tt.args, code, out.String(), errs.String())
		}
	}
	if got, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || got != 0 {
		t.Errorf("a core of this program would have keys in it: dumpable is %d, %v", got, err)
	}
	t.Run("mistakes", func(t *testing.T) {
		t.Setenv("SECRET_TTL", "never")
		t.Setenv("PACKET_MARK", "x")
		var out, errs bytes.Buffer
		if code := run(nil, &out, &errs); code != 1 || !strings.Contains(errs.String(), "SECRET_TTL") || !strings.Contains(errs.String(), "PACKET_MARK") {
			t.Errorf("%d: %s", code, errs.String())
		}
	})
}

// make build FIPS=1 builds with a version of Go's FIPS 140-3 module that was validated and that this toolchain has.
func TestFIPSBuild(t *testing.T) {
	ask := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = "../../.."
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return strings.TrimSpace(string(out))
	}
	const show = "--eval=show-fips:;@echo \"$$GOFIPS140\""
	if got := ask("make", "-s", show, "show-fips"); got != "" {
		t.Errorf("without FIPS=1: %q", got)
	}
	module := ask("make", "-s", show, "show-fips", "FIPS=1")
	if module != "v1.0.0" {
		t.Errorf("with FIPS=1: %q", module)
	}
	// Of a version that was validated the toolchain has the archive under a longer name, and this file says which.
	if _, err := os.Stat(filepath.Join(ask("go", "env", "GOROOT"), "lib/fips140", module+".txt")); err != nil {
		t.Error(err)
	}
}
