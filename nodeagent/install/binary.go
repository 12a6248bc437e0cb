package install

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/internal/hostdir"
)

const maxBinary = 1 << 30

// binary is the plugin's, as it came with us.
type binary struct {
	path string
	sum  [sha256.Size]byte
}

// openBinary looks at the plugin's binary. One that this machine cannot run
// would keep every pod of the node from starting.
func openBinary(path string) (binary, error) {
	b := binary{path: path}
	f, err := os.Open(path)
	if err != nil {
		return b, fmt.Errorf("the plugin's binary: %w", err)
	}
	defer f.Close()
	if err := runsHere(f); err != nil {
		return b, fmt.Errorf("the plugin's binary %s: %w", path, err)
	}
	if b.sum, err = sum(f); err != nil {
		return b, fmt.Errorf("the plugin's binary %s: %w", path, err)
	}
	return b, nil
}

func runsHere(f io.ReaderAt) error {
	machine, known := map[string]elf.Machine{
		"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM, "386": elf.EM_386,
		"ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390, "riscv64": elf.EM_RISCV, "loong64": elf.EM_LOONGARCH,
	}[runtime.GOARCH]
	e, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("not a program: %w", err)
	}
	if known && e.Machine != machine {
		return fmt.Errorf("a program for %s, which this machine (%s) does not run", e.Machine, runtime.GOARCH)
	}
	return nil
}

func sum(r io.Reader) (s [sha256.Size]byte, err error) {
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(r, maxBinary+1))
	if err == nil && n > maxBinary {
		err = fmt.Errorf("more than %d bytes", maxBinary)
	}
	return [sha256.Size]byte(h.Sum(nil)), err
}

// installBinary puts the binary on the host if it is not there as it is here,
// and says whether one is there at all. A plugin that runs meanwhile goes on: it
// keeps the file that it was started from.
func (i *Installer) installBinary(bins folder) (there, changed bool, err error) {
	info, err := bins.Stat(conflist.Type)
	there = err == nil
	if there && info == i.verified {
		return true, false, nil
	}
	if there && info.Mode&0o111 == 0o111 {
		same, err := i.same(bins)
		if err == nil && same {
			i.verified = info
			return true, false, nil
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		i.log.Warn("what is in the place of the plugin's binary is replaced", "err", err)
	}
	f, err := os.Open(i.binary.path)
	if err != nil {
		return there, false, fmt.Errorf("the plugin's binary: %w", err)
	}
	defer f.Close()
	if err := bins.clean(); err != nil {
		return there, false, err
	}
	like := hostdir.Info{Mode: 0o755, UID: os.Geteuid(), GID: os.Getegid()}
	if err := bins.put(conflist.Type, f, like); err != nil {
		return there, false, err
	}
	if i.verified, err = bins.Stat(conflist.Type); err != nil {
		return false, true, err
	}
	return true, true, nil
}

func (i *Installer) same(bins folder) (bool, error) {
	f, _, err := bins.Open(conflist.Type)
	if err != nil {
		return false, err
	}
	defer f.Close()
	got, err := sum(f)
	return err == nil && bytes.Equal(got[:], i.binary.sum[:]), err
}
