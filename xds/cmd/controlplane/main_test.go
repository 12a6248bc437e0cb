package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNoDump: a core of a program with the mesh's key would have it inside.
func TestNoDump(t *testing.T) {
	defer func(before []string) { os.Args = before }(os.Args)
	os.Args = []string{"controlplane", "--version"}
	main()
	if got, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || got != 0 {
		t.Errorf("dumpable is %d, %v", got, err)
	}
}

// TestVersion: what does the CA's cryptography is said.
func TestVersion(t *testing.T) {
	var out bytes.Buffer
	cmd := command()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--version"})
	if err := cmd.Execute(); err != nil || !strings.Contains(out.String(), "dev go-") {
		t.Errorf("%q, %v", out.String(), err)
	}
}
