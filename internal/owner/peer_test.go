package owner_test

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/internal/owner"
)

const listenAt = "WARREN_TEST_LISTEN"

// TestMain is also the process of another user that listens.
func TestMain(m *testing.M) {
	path := os.Getenv(listenAt)
	if path == "" {
		os.Exit(m.Run())
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		panic(err)
	}
	_, _ = os.Stdout.WriteString("listening\n")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // until the test ends
	_ = l.Close()
}

// A path that looks right is not enough: the process counts that listens there.
func TestAnotherUserListens(t *testing.T) {
	if os.Geteuid() != 0 {
		nstest.Need(t, errors.New("needs root, to become another user"))
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	for up := dir; up != "/"; up = filepath.Dir(up) { // the stranger has to get there
		info, err := os.Stat(up)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(up, info.Mode()|0o011); err != nil {
			t.Fatal(err)
		}
		if filepath.Dir(up) == os.TempDir() {
			break
		}
	}
	program := filepath.Join(dir, "listener")
	text, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, text, 0o755); err != nil { //nolint:gosec // to be run by another user
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "agent.sock")
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = append(os.Environ(), listenAt+"="+socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer stdin.Close()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	if err := os.Chown(socket, 0, 0); err != nil { // so that only the process gives it away
		t.Fatal(err)
	}
	if _, err := owner.Trusted(nil).Dial(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "served by uid 12345") {
		t.Error(err)
	}
	conn, err := owner.Trusted{stranger}.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
