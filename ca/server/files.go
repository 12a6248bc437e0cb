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
	"regexp"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/internal/owner"
)

// The files of an authority, named as in Istio's cacerts secret, so that such a secret can be mounted here.
const (
	certFile  = "ca-cert.pem"
	keyFile   = "ca-key.pem"
	chainFile = "cert-chain.pem"
	rootsFile = "root-cert.pem"
)

// The names in a TLS Secret, which cert-manager writes and istiod takes as well: a plugged-in authority may have these.
const (
	tlsCertFile  = "tls.crt" // followed by those above it
	tlsKeyFile   = "tls.key"
	tlsRootsFile = "ca.crt"
)

const maxFile = 256 << 10

func readFiles(root *os.Root) (f authority.Files, err error) {
	// Against the order in which they are written: who finds the later one finds the earlier.
	err = readNamed(root, []named{{rootsFile, &f.Roots}, {chainFile, &f.Chain}, {certFile, &f.Cert}, {keyFile, &f.Key}})
	return f, err
}

// readSet reads an authority by either set of names, Istio's own first.
func readSet(root *os.Root) (authority.Files, error) {
	f, err := readFiles(root)
	if err != nil || f.Cert != nil || f.Key != nil {
		return f, err
	}
	var cert, key, roots []byte
	if err := readNamed(root, []named{{tlsRootsFile, &roots}, {tlsCertFile, &cert}, {tlsKeyFile, &key}}); err != nil || cert == nil && key == nil {
		return authority.Files{}, err
	}
	return authority.FromTLS(cert, key, roots)
}

// named is a file and where its content goes.
type named struct {
	name string
	to   *[]byte
}

// readNamed reads those that are there.
func readNamed(root *os.Root, files []named) error {
	for _, one := range files {
		text, err := readFile(root, one.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		*one.to = text
	}
	return nil
}

func readFile(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if name == keyFile || name == tlsKeyFile || strings.HasPrefix(name, recordPrefix) {
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

// adopt gives what root has written to whom the folder belongs to: a control plane that does not run as root has to read
// and replace what `controlplane ca` wrote for an administrator who does.
func adopt(root *os.Root, chown func(uid, gid int) error) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	uid, gid, ok := owner.Of(info)
	if !ok || uid == 0 && gid == 0 {
		return nil
	}
	return chown(uid, gid)
}

// leftAfter is how old a file that is being written must be to be one of a process that was ended in between.
const leftAfter = time.Minute

// sweep removes what such processes left in a folder: there may be keys in it.
func sweep(root *os.Root, dir string, now time.Time) error {
	names, err := list(root, dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !tmpName.MatchString(name) {
			continue
		}
		file := path.Join(dir, name)
		info, err := root.Lstat(file)
		if err == nil && info.Mode().IsRegular() && now.Sub(info.ModTime()) > leftAfter {
			err = root.Remove(file)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// tmpName is of files that beside writes: rand.Text has 26 letters and digits.
var tmpName = regexp.MustCompile(`^\..+\.[A-Z2-7]{26}$`)

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
	if err := errors.Join(werr, adopt(root, f.Chown), f.Chmod(mode), f.Sync(), f.Close()); err != nil {
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
