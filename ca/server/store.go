package server

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/authority"
)

// The files of an authority, named as in Istio's cacerts secret, so that such a secret can be mounted here.
const (
	certFile  = "ca-cert.pem"
	keyFile   = "ca-key.pem"
	chainFile = "cert-chain.pem"
	rootsFile = "root-cert.pem"
)

const maxFile = 256 << 10

// LoadOrCreate reads the authority kept in dir, making one for td when dir holds none, and leaves the root bundle
// there as root-cert.pem (0644) for proxies to be given. A key that others can read is refused. Two processes that
// start at once end up with the same authority; a crash at any point leaves a directory that the next start accepts.
func LoadOrCreate(dir string, td spiffeid.TrustDomain, p authority.Policy, now time.Time) (*authority.Authority, error) {
	a, err := loadOrCreate(dir, td, p, now)
	if err != nil {
		return nil, fmt.Errorf("ca state in %s: %w", dir, err)
	}
	return a, nil
}

func loadOrCreate(dir string, td spiffeid.TrustDomain, p authority.Policy, now time.Time) (*authority.Authority, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if info, err := root.Stat("."); err != nil {
		return nil, err
	} else if m := info.Mode().Perm(); m&0o002 != 0 {
		return nil, fmt.Errorf("the directory has mode %#o, so that anybody can replace the key; run chmod 755 on it", m)
	}
	f, err := readFiles(root)
	if err != nil {
		return nil, err
	}
	if f.Cert == nil || f.Key == nil {
		if err := create(root, f, td, now); err != nil {
			return nil, err
		}
		if f, err = readFiles(root); err != nil { // what is on disk counts, whoever wrote it
			return nil, err
		}
	}
	a, err := authority.Load(f, p, now)
	if err != nil {
		return nil, err
	}
	if f.Roots == nil {
		if err := install(root, rootsFile, a.RootsPEM(), 0o644); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func readFiles(root *os.Root) (authority.Files, error) {
	var f authority.Files
	for name, to := range map[string]*[]byte{certFile: &f.Cert, keyFile: &f.Key, chainFile: &f.Chain, rootsFile: &f.Roots} {
		text, err := readFile(root, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return authority.Files{}, err
		}
		*to = text
	}
	return f, nil
}

func readFile(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if name == keyFile {
		if _, err := checkSecret(f); err != nil {
			return nil, err
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return text, nil
}

// create fills in what f lacks.
func create(root *os.Root, f authority.Files, td spiffeid.TrustDomain, now time.Time) error {
	switch {
	case f.Cert != nil:
		return fmt.Errorf("%s is there without %s; put the key back, or remove both to begin a new mesh", certFile, keyFile)
	case f.Key != nil:
		made, err := authority.Recreate(td, f.Key, now)
		if err != nil {
			return err
		}
		return install(root, certFile, made.Cert, 0o644)
	case f.Roots != nil:
		// A new root beside an old bundle would be an authority that nobody trusts.
		return fmt.Errorf("%s is there without %s and %s; put those back, or remove it to begin a new mesh", rootsFile, certFile, keyFile)
	}
	made, err := authority.Create(td, now)
	if err != nil {
		return err
	}
	if err := install(root, keyFile, made.Key, 0o600); err != nil {
		return err
	}
	// Another process may have been first with its key.
	key, err := readFile(root, keyFile)
	if err != nil {
		return err
	}
	if !bytes.Equal(key, made.Key) {
		if made, err = authority.Recreate(td, key, now); err != nil {
			return err
		}
	}
	return install(root, certFile, made.Cert, 0o644)
}

// install puts a whole file at name unless one is there already: readers see all of it or nothing, and of two writers
// the first wins.
func install(root *os.Root, name string, text []byte, mode fs.FileMode) (err error) {
	tmp := "." + name + "." + rand.Text()
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Remove(tmp)) }()
	_, werr := f.Write(text)
	// The mode again, since the process's umask may have taken from it.
	if err := errors.Join(werr, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := root.Link(tmp, name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
