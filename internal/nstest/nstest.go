package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"
	"github.com/warren-mesh/warren/internal/netns"
)

// rerunEnv marks the second run of a test binary, as root of its own user
// namespace.
const rerunEnv = "WARREN_NSTEST_RERUN"

// Main is the whole body of a TestMain. Without root it runs the test binary
// again as root of new user, network and mount namespaces, if the kernel allows
// that.
func Main(m *testing.M) {
	if os.Geteuid() != 0 && os.Getenv(rerunEnv) == "" {
		if err := rerun(); err != nil {
			fmt.Fprintln(os.Stderr, "nstest: not root, and no user namespace to be had:", err)
		}
	}
	if os.Getenv(rerunEnv) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "nstest: loopback:", err)
			os.Exit(1)
		}
		os.Unsetenv(rerunEnv) // it was for this process, not for its children
	} else if os.Geteuid() == 0 && inUserNamespace() {
		// Somebody else's unshare: its loopback is down, too. Where it is not
		// ours to raise, the tests that need it say so.
		_ = loopbackUp()
	}
	os.Exit(m.Run())
}

// inUserNamespace says whether this is another than the machine's first one,
// which maps every user to itself.
func inUserNamespace() bool {
	users, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(users)), " ") != "0 0 4294967295"
}

// rerun replaces the process; it returns only when that is impossible.
func rerun() error {
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return err
	}
	flags := "-rnm" // map root, new network, new mounts
	if out, err := exec.Command(unshare, flags, "true").CombinedOutput(); err != nil {
		return fmt.Errorf("unshare %s: %w: %s", flags, err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := append([]string{unshare, flags, "--", self}, os.Args[1:]...)
	return unix.Exec(unshare, args, append(os.Environ(), rerunEnv+"=1"))
}

// Require skips the test where namespaces cannot be made; with CI=true it fails
// it instead, so that nothing goes untested unseen.
func Require(t testing.TB) {
	t.Helper()
	err := netns.SelfTest()
	if err == nil && os.Geteuid() != 0 {
		err = errors.New("not root")
	}
	if err == nil {
		return
	}
	Need(t, fmt.Errorf("needs root, or TestMain calling nstest.Main: %w", err))
}

// Need skips a test for which the machine lacks something, as err says; nil is
// nothing. With CI=true it fails it instead, so that nothing goes untested unseen.
func Need(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("nstest: this must not be skipped here: %v", err)
	default:
		t.Skipf("nstest: %v", err)
	}
}

// NewNS makes an empty namespace with loopback up, bound to a file so that it
// has a path. Both go when the test ends.
func NewNS(t testing.TB, name string) (ns *netns.NS, path string) {
	t.Helper()
	return newNS(t, name, settle)
}

func newNS(t testing.TB, name string, settle time.Duration) (ns *netns.NS, path string) {
	t.Helper()
	Require(t)
	path = filepath.Join(t.TempDir(), name) // first, so that it is removed last
	ns, err := create(path)
	if err != nil {
		t.Fatalf("nstest: namespace %s: %v", name, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("nstest: unmount %s: %v", path, err)
		}
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
		if holders := waitGone(ns.ID(), settle); len(holders) > 0 {
			t.Errorf("nstest: namespace %s is still held by %v", name, holders)
		}
	})
	return ns, path
}

func create(path string) (ns *netns.NS, err error) {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	home, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer home.Close()
	err = home.Do(func() (err error) { // Do also brings the thread back
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if ns, err = netns.Current(); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
		return errors.Join(loopbackUp(), quickIPv6())
	})
	if err != nil && ns != nil {
		unix.Unmount(path, unix.MNT_DETACH)
		ns.Close()
	}
	return ns, err
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// quickIPv6 turns duplicate address detection off, which would make every new
// address wait for a second.
func quickIPv6() error {
	const dad = "/proc/sys/net/ipv6/conf/default/accept_dad"
	if err := os.WriteFile(dad, []byte("0"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
