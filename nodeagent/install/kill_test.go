package install_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/nodeagent/install"
)

const (
	// childEnv makes the test binary an installer in the host at that root, which
	// installs and leaves until it is killed.
	childEnv = "WARREN_INSTALL_TEST_ROOT"
	// childOwnEnv makes it use a file of its own.
	childOwnEnv = "WARREN_INSTALL_TEST_OWN"
)

func childInstaller(root string) error {
	plugin, err := exec.LookPath("true")
	if err != nil {
		return err
	}
	fmt.Println("up")
	for {
		i, err := install.New(install.Config{
			HostRoot: root, CNIConfDir: confDir, CNIBinDir: binDir, Chained: os.Getenv(childOwnEnv) == "",
			PluginBinary: plugin, PluginConfig: entry(), StateDir: root + "/var/lib/warren",
			Times: install.Times{Linger: time.Millisecond, Leave: time.Millisecond, Settle: time.Millisecond},
		})
		if err != nil {
			return err
		}
		for range 3 {
			i.Round()
		}
		if err := i.Uninstall(context.Background()); err != nil {
			fmt.Println("uninstall:", err)
		}
	}
}

// The installer is killed at any moment, again and again, while it installs and
// leaves, and while the primary writes. Every time, what is on the host can be
// read and has its binary; and the next installer makes it good.
func TestKilled(t *testing.T) {
	kills := 60
	if testing.Short() {
		kills = 6
	}
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprintf("own %v", own), func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			const name = "10-calico.conflist"
			seed := uint64(time.Now().UnixNano())
			rnd := rand.New(rand.NewPCG(seed, 1))
			t.Logf("seed %d", seed)
			h.writeConf(name, version(0))
			installed, leftovers := 0, 0
			for n := range kills {
				h.killOne(own, time.Duration(rnd.IntN(60000))*time.Microsecond, func() {
					if rnd.IntN(2) == 0 {
						h.writeConf(name, version(n))
					} else {
						h.must(os.WriteFile(h.conf(name), []byte(version(n)), 0o644))
					}
				})
				first, types, err := h.runtime()
				if err != nil {
					t.Fatalf("kill %d: a runtime cannot read %s: %v", n, first, err)
				}
				if !slices.Contains(types, "calico") {
					t.Fatalf("kill %d: %s has the plugins %v", n, first, types)
				}
				if slices.Contains(types, "warren-cni") {
					installed++
					if info, err := os.Stat(h.path(binDir + "/warren-cni")); err != nil || info.Mode()&0o111 == 0 {
						t.Fatalf("kill %d: %s names a plugin whose binary is not there: %v", n, first, err)
					}
				}
				if slices.ContainsFunc(h.confs(), func(s string) bool { return strings.HasPrefix(s, ".warren") }) {
					leftovers++
				}
				i := h.installer(func(c *install.Config) { c.Chained = !own })
				if n%4 == 0 {
					settled(t, h, i)
					wantChained(t, h, name, version(n), own)
				}
				if n%8 == 0 {
					h.must(i.Uninstall(t.Context()))
					if got := h.read(name); got != version(n) {
						t.Fatalf("kill %d: after leaving the primary's file is\n%s\nand was\n%s", n, got, version(n))
					}
					if confs := h.confs(); len(confs) != 1 {
						t.Fatalf("kill %d: left %v", n, confs)
					}
				}
			}
			t.Logf("own %v: of %d kills, %d found it installed and %d in the middle of a change", own, kills, installed, leftovers)
			if !testing.Short() && (installed == 0 || leftovers == 0) {
				t.Error("the kills hit the same moment all the time")
			}
		})
	}
}

// killOne starts an installer, lets it work for so long, does something in the
// middle of that time, and kills it.
func (h *host) killOne(own bool, after time.Duration, meanwhile func()) {
	h.t.Helper()
	self, err := os.Executable()
	h.must(err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+h.root)
	if own {
		cmd.Env = append(cmd.Env, childOwnEnv+"=1")
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	h.must(err)
	h.must(cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		h.t.Errorf("the installer said %q, %v", line, err)
	}
	time.Sleep(after / 2)
	meanwhile()
	time.Sleep(after / 2)
	h.must(cmd.Process.Kill())
	_ = cmd.Wait()
}
