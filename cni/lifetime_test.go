package cni_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestNobodyReads: a runtime that does not read what the plugin prints does not
// keep it alive for ever.
func TestNobodyReads(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "test", "type": "warren-cni", "runDir": %q, "prevResult": {"cniVersion": "1.1.0", "x": %q}}`,
		t.TempDir(), strings.Repeat("z", 1<<20)) // much more than a pipe holds
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), pluginEnv+"=500ms", "CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=/nowhere", "CNI_PATH=/",
		"CNI_ARGS=K8S_POD_NAMESPACE=warren-system;K8S_POD_NAME=a")
	cmd.Stdin, cmd.Stdout = strings.NewReader(conf), w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("it waits for ever")
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		<-ended
	}
}
