package owner_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/internal/owner"
)

const stranger = 12345

// Only what belongs to root, to us or to who is named is talked to.
func TestDial(t *testing.T) {
	if os.Geteuid() != 0 {
		nstest.Need(t, errors.New("needs root, to give files away"))
	}
	for _, tc := range []struct {
		name    string
		change  func(t *testing.T, dir, socket string)
		trusted owner.Trusted
		want    string // in the error; empty for none
	}{
		{name: "root's", change: func(*testing.T, string, string) {}},
		{name: "the socket is a stranger's", change: func(t *testing.T, _, socket string) { give(t, socket) }, want: "belongs to uid 12345"},
		{name: "the folder is a stranger's", change: func(t *testing.T, dir, _ string) { give(t, dir) }, want: "belongs to uid 12345"},
		{name: "anybody writes to the folder", change: func(t *testing.T, dir, _ string) { mode(t, dir, 0o777) }, want: "mode 0777"},
		{name: "a group writes to the folder", change: func(t *testing.T, dir, _ string) { mode(t, dir, 0o775) }, want: "mode 0775"},
		{name: "nobody may replace what is another's there", change: func(t *testing.T, dir, _ string) { mode(t, dir, 0o777|os.ModeSticky) }},
		{name: "a user that was named", change: func(t *testing.T, dir, socket string) { give(t, dir); give(t, socket) }, trusted: owner.Trusted{stranger}},
		{name: "nothing there", change: func(t *testing.T, _, socket string) { _ = os.Remove(socket) }, want: "no such file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			socket := filepath.Join(dir, "agent.sock")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			tc.change(t, dir, socket)
			conn, err := tc.trusted.Dial(t.Context(), socket)
			if err == nil {
				conn.Close()
			}
			if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func give(t *testing.T, path string) {
	t.Helper()
	if err := os.Chown(path, stranger, stranger); err != nil {
		t.Fatal(err)
	}
}

func mode(t *testing.T, path string, m os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, m); err != nil {
		t.Fatal(err)
	}
}
