package onehost

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// Programs says where the programs under test are: in $WARREN_BINS, which
// `make test` sets, or else built into a folder that done removes. Without
// root it returns an empty name: the tests cannot run, which is an error in
// CI.
func Programs() (dir string, done func(), err error) {
	done = func() {}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			return "", done, errors.New("these tests need root, or `make test`, which gets it by unshare")
		}
		fmt.Println("skipped: not root (`make test` runs these tests under unshare)")
		return "", done, nil
	}
	if dir = os.Getenv("WARREN_BINS"); dir != "" {
		return dir, done, nil
	}
	if dir, err = os.MkdirTemp("", "warren-bins-"); err != nil {
		return "", done, err
	}
	done = func() { os.RemoveAll(dir) }
	build := exec.Command("make", "-s", "-C", "../..", "build", "plugins", "BIN="+dir)
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		done()
		return "", func() {}, fmt.Errorf("build the programs: %w", err)
	}
	return dir, done, nil
}
