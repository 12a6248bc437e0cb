package delegated

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Process 1 of our own PID namespace is the host's where it is not of our container or pod.
func TestWhoseIsProcessOne(t *testing.T) {
	const slice = "/kubepods.slice/kubepods-pod1.slice/"
	for name, tt := range map[string]struct {
		ours, first string
		same        bool
	}{
		"our container":                        {"0::/", "0::/", true},
		"our container, seen from the host":    {"0::" + slice + "a", "0::" + slice + "a", true},
		"the sandbox of a shared namespace":    {"0::/", "0::/../pause.scope", true},
		"the same, seen from the host":         {"0::" + slice + "a", "0::" + slice + "pause", true},
		"the same, of version 1":               {"3:pids:" + slice + "a\n1:name=systemd:/\n", "3:pids:" + slice + "pause\n1:name=systemd:/\n", true},
		"the host's":                           {"0::/", "0::/../../../../init.scope", false},
		"the host's, seen from there":          {"0::" + slice + "a", "0::/init.scope", false},
		"the host's, in the root":              {"0::" + slice + "a", "0::/", false},
		"the host's, of version 1 in part":     {"3:pids:" + slice + "a\n0::/\n", "3:pids:/init.scope\n0::/\n", false},
		"a node's that is a container":         {"0::/kubelet" + slice + "a", "0::/init.scope", false},
		"a service's, beside the init process": {"0::/warren.service", "0::/init.scope", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			err := errors.Join(os.MkdirAll(filepath.Join(dir, "self/ns"), 0o700), os.Mkdir(filepath.Join(dir, "1"), 0o700),
				os.WriteFile(filepath.Join(dir, "self/cgroup"), []byte(tt.ours), 0o600), os.WriteFile(filepath.Join(dir, "1/cgroup"), []byte(tt.first), 0o600))
			if err != nil {
				t.Fatal(err)
			}
			if got := samePod(dir, dir); got != tt.same {
				t.Errorf("got %v", got)
			}
		})
	}
}
