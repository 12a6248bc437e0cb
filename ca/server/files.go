package server

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
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

func readFiles(root *os.Root) (authority.Files, error) {
	var f authority.Files
	// Against the order in which they are written: who finds the later one finds the earlier.
	for _, one := range []struct {
		name string
		to   *[]byte
	}{{rootsFile, &f.Roots}, {chainFile, &f.Chain}, {certFile, &f.Cert}, {keyFile, &f.Key}} {
		text, err := readFile(root, one.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return authority.Files{}, err
		}
		*one.to = text
	}
	return f, nil
}

func readFile(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if name == keyFile || strings.HasPrefix(name, recordPrefix) {
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
func install(root *os.Root, name string, text []byte, mode fs.FileMode) error {
	_, err := link(root, name, text, mode)
	return err
}

// link is install, and reports who won.
func link(root *os.Root, name string, text []byte, mode fs.FileMode) (won bool, err error) {
	err = beside(root, name, text, mode, func(tmp string) error {
		lerr := root.Link(tmp, name)
		won = lerr == nil
		if errors.Is(lerr, fs.ErrExist) {
			lerr = nil
		}
		return errors.Join(lerr, root.Remove(tmp))
	})
	return won, err
}

// replace puts a whole file at name, whatever was there.
func replace(root *os.Root, name string, text []byte, mode fs.FileMode) error {
	return beside(root, name, text, mode, func(tmp string) error {
		err := root.Rename(tmp, name)
		if err != nil {
			err = errors.Join(err, root.Remove(tmp))
		}
		return err
	})
}

// beside writes a file next to name, has it moved there, and sees to it that both are on the disk.
func beside(root *os.Root, name string, text []byte, mode fs.FileMode, move func(tmp string) error) error {
	dir, base := path.Split(name)
	tmp := path.Join(dir, "."+base+"."+rand.Text())
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, werr := f.Write(text)
	// The mode again, since the process's umask may have taken from it.
	if err := errors.Join(werr, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, root.Remove(tmp))
	}
	if err := move(tmp); err != nil {
		return err
	}
	d, err := root.Open(path.Clean("./" + dir))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
