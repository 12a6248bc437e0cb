package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
)

// StateDir keeps an authority in a folder, for one control plane and for `controlplane ca` beside it: a rotation.Store.
//
//	ca-cert.pem, ca-key.pem     the authority; cert-chain.pem, if it is an intermediate one
//	root-cert.pem               the roots, for proxies to be given
//	rotation.N.json             the record of a rotation, with the key of the authority that does not sign
//	issued/NAME.json            how many certificates a control plane has signed that are valid
//
// With Plugged the authority is read from another folder, in the layout of Istio's cacerts or of a TLS Secret (tls.crt,
// tls.key, ca.crt), and only the rest is here.
//
// Every file is written beside its place and renamed or linked into it. A key that others can read is refused. Two
// processes that start at once end up with the same authority; a crash at any point leaves a folder that the next start
// accepts. What root writes belongs to whom the folder belongs to.
type StateDir struct {
	Path        string
	Plugged     string // folder that somebody else writes; empty for none
	TrustDomain spiffeid.TrustDomain
}

// do opens the folder, which it makes where there is none.
func (s *StateDir) do(f func(root *os.Root) error) error {
	if err := os.MkdirAll(s.Path, 0o755); err != nil {
		return s.fail(err)
	}
	return s.fail(inFolder(s.Path, f))
}

// look opens the folder if there is one.
func (s *StateDir) look(f func(root *os.Root) error) error {
	if _, err := os.Stat(s.Path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return s.fail(inFolder(s.Path, f))
}

func (s *StateDir) fail(err error) error {
	if err != nil && !errors.Is(err, rotation.ErrChanged) {
		return fmt.Errorf("ca state in %s: %w", s.Path, err)
	}
	return err
}

func inFolder(path string, f func(root *os.Root) error) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	if info, err := root.Stat("."); err != nil {
		return err
	} else if m := info.Mode().Perm(); m&0o002 != 0 {
		return fmt.Errorf("the directory has mode %#o, so that anybody can replace the key; run chmod 755 on it", m)
	}
	return f(root)
}

// Read implements rotation.Store.
func (s *StateDir) Read(context.Context) (k rotation.Kept, err error) {
	k.Version = firstVersion
	err = s.look(func(root *os.Root) error {
		if k.Record, k.Version, err = readRecord(root); err != nil {
			return err
		}
		if s.Plugged == "" {
			k.Files, err = readFiles(root)
		}
		return err
	})
	if err != nil {
		k.Name = s.Path
		return k, err
	}
	from := s.Path
	if s.Plugged != "" {
		from, k.Plugged = s.Plugged, true
		if k.Files, err = s.readPlugged(); err != nil {
			k.Name = from
			return k, err
		}
	}
	if k.Files.Cert != nil && k.Files.Key != nil {
		k.Name = from
	}
	if !k.Plugged && k.Record.Phase == rotation.Replacing && k.Record.Fits(k.Files) {
		k.Files.Roots = k.Record.Roots // the file holds what Publish wrote
	}
	return k, nil
}

// readPlugged reads all of one set: what a folder's files are changed to while they are read is not one.
func (s *StateDir) readPlugged() (f authority.Files, err error) {
	err = inFolder(s.Plugged, func(root *os.Root) error {
		if f, err = readSet(root); err != nil {
			return err
		}
		again, err := readSet(root)
		if err != nil {
			return err
		}
		for name, two := range map[string][2][]byte{certFile: {f.Cert, again.Cert}, keyFile: {f.Key, again.Key}, chainFile: {f.Chain, again.Chain}, rootsFile: {f.Roots, again.Roots}} {
			if !bytes.Equal(two[0], two[1]) {
				return fmt.Errorf("%s is being written", name)
			}
		}
		return nil
	})
	switch {
	case err != nil:
	case f.Cert == nil && f.Key == nil:
		err = fmt.Errorf("%s and %s are missing, and so are %s and %s", certFile, keyFile, tlsCertFile, tlsKeyFile)
	case f.Cert == nil:
		err = fmt.Errorf("%s is missing", certFile)
	case f.Key == nil:
		err = fmt.Errorf("%s is missing", keyFile)
	}
	if err != nil {
		return authority.Files{}, fmt.Errorf("plugged-in CA in %s: %w", s.Plugged, err)
	}
	return f, nil
}

// Create implements rotation.Store.
func (s *StateDir) Create(_ context.Context, now time.Time) error {
	return s.do(func(root *os.Root) error {
		f, err := readFiles(root)
		if err != nil || f.Cert != nil && f.Key != nil {
			return err
		}
		return create(root, f, s.TrustDomain, now)
	})
}

// PutBack implements rotation.Store.
func (s *StateDir) PutBack(_ context.Context, f authority.Files) error {
	return s.do(func(root *os.Root) error {
		return errors.Join(install(root, keyFile, f.Key, 0o600), install(root, certFile, f.Cert, 0o644))
	})
}

// Install implements rotation.Store. The record, which says what is to be installed, is cleared after.
func (s *StateDir) Install(_ context.Context, f authority.Files) error {
	return s.do(func(root *os.Root) error {
		for _, one := range []struct {
			name string
			text []byte
			mode fs.FileMode
		}{{keyFile, f.Key, 0o600}, {certFile, f.Cert, 0o644}, {rootsFile, f.Roots, 0o644}} {
			if err := replace(root, one.name, one.text, one.mode); err != nil {
				return err
			}
		}
		return nil
	})
}

// Publish implements rotation.Store.
func (s *StateDir) Publish(_ context.Context, roots []byte) error {
	return s.do(func(root *os.Root) error {
		if is, err := readFile(root, rootsFile); err == nil && authority.SameBundle(is, roots) {
			return nil // perhaps in another order, or with words between
		}
		return replace(root, rootsFile, roots, 0o644)
	})
}
