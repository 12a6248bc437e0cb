package proxy

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A writer's moment with SVID_CONFIG's file, empty, away or in part, changes nothing; what stays so does.
func TestSVIDFileInTheMiddle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "svids")
	base, err := FromEnviron([]string{"LOCAL_XDS=none", "SVID_SOURCE=file", "SVID_DIR=/env", "SVID_OVERLAP=0s", "SVID_CONFIG=" + path})
	if err != nil {
		t.Fatal(err)
	}
	const whole = "SVID_DIR=/file\nSVID_OVERLAP=1h\n"
	now, file := base, settled{}
	look := func(text string, want string, overlap time.Duration) {
		t.Helper()
		err := os.Remove(path)
		if text != "away" {
			err = os.WriteFile(path, []byte(text), 0o600)
		}
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		next, err := base.lookAtSVIDFile(&file, now)
		if err != nil {
			t.Fatal(err)
		}
		if now = next; now.SVIDs.Files != want || now.SVIDs.Overlap != overlap {
			t.Errorf("after %q: %s, %s; want %s, %s", text, now.SVIDs.Files, now.SVIDs.Overlap, want, overlap)
		}
	}
	look("away", "/env", 0)
	look(whole, "/env", 0)
	look(whole, "/file", time.Hour)
	for _, moment := range []string{"", "away", "SVID_DIR=/f", "SVID_DIR=/file\n"} {
		for range 3 {
			look(moment, "/file", time.Hour)
			look(whole, "/file", time.Hour)
		}
	}
	look("SVID_DIR=/file\n", "/file", time.Hour)
	look("SVID_DIR=/file\n", "/file", 0) // as the environment says
	for _, gone := range []string{"", "away"} {
		look(whole, now.SVIDs.Files, now.SVIDs.Overlap)
		look(whole, "/file", time.Hour)
		look(gone, "/file", time.Hour)
		look(gone, "/env", 0)
	}
}
