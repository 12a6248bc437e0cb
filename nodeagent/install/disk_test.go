package install_test

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/install"
)

// A disk that is really full, and one that is really read-only.
func TestRealDisk(t *testing.T) {
	nstest.Require(t)
	for _, own := range []bool{false, true} {
		h := newHost(t)
		at := h.path(confDir)
		nstest.Need(t, syscall.Mount("tmpfs", at, "tmpfs", 0, "size=16k"))
		t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
		h.writeConf("10-calico.conflist", calico)
		// What is left of the room.
		f, err := os.Create(h.conf("filler"))
		h.must(err)
		for err == nil {
			_, err = f.Write(make([]byte, 1024))
		}
		h.must(f.Close())
		i := h.installer(func(c *install.Config) { c.Chained = !own })
		i.Round()
		wantPhase(t, i, install.Failed, "no space left")
		h.wantRuntime("10-calico.conflist", "calico", "portmap")
		if confs := h.confs(); len(confs) != 2 {
			t.Errorf("own %v: left %v", own, confs)
		}

		h.must(os.Remove(h.conf("filler")))
		h.must(syscall.Mount("tmpfs", at, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, "size=16k"))
		i.Round()
		wantPhase(t, i, install.Failed, "read-only")
		if err := i.Uninstall(t.Context()); err != nil {
			t.Errorf("own %v: there is nothing to take away, but: %v", own, err)
		}

		h.must(syscall.Mount("tmpfs", at, "tmpfs", syscall.MS_REMOUNT, "size=64k"))
		i = h.installer(func(c *install.Config) { c.Chained = !own })
		i.Round()
		wantPhase(t, i, install.Installed)
		h.must(syscall.Mount("tmpfs", at, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, "size=64k"))
		if err := i.Uninstall(t.Context()); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("own %v: error %v", own, err)
		}
		if _, err := os.Stat(h.path(binDir + "/warren-cni")); err != nil {
			t.Errorf("own %v: the binary that a file names is gone: %v", own, err)
		}
		h.must(syscall.Unmount(at, 0))
	}
}
