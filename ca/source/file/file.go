// Package file reads SVIDs from files, as cert-manager and its CSI driver write them: tls.crt, tls.key and ca.crt in one
// folder, read anew when they change. Under the configured folder an identity's is ns/NAMESPACE/sa/SERVICEACCOUNT; where
// there is one identity (dedicated mode), they may be in the folder itself.
//
// The keys are then on disk, which no other source does: whoever can read the folder is these workloads.
//
// Kind: adapter. A Watcher of ca/svid, used by proxy.
package file

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/svid"
)

const (
	defaultEvery = 2 * time.Second
	maxFile      = 256 << 10
	maxChain     = 5
	maxRoots     = 64
	maxKnown     = 8192 // identities of which roots are remembered
)

// Names of the files in a folder.
const (
	certName  = "tls.crt"
	keyName   = "tls.key"
	rootsName = "ca.crt"
)

// Source is a svid.Watcher.
type Source struct {
	dir   string
	every time.Duration

	mu    sync.Mutex
	gone  map[spiffeid.ID]time.Time           // since when its files are not there
	roots map[spiffeid.ID][]*x509.Certificate // as they were given last
}

// forgetAfter bounds what is remembered of files that never come back.
const forgetAfter = time.Hour

// New reads below dir, looking for changes every so often; 0 is 2 s. Looking, rather than being told, works on every
// file system and however the files are replaced.
func New(dir string, every time.Duration) (*Source, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("SVID files: %q is not an absolute path", dir)
	}
	if every <= 0 {
		every = defaultEvery
	}
	return &Source{dir: dir, every: every, gone: map[spiffeid.ID]time.Time{}, roots: map[spiffeid.ID][]*x509.Certificate{}}, nil
}

// Watch implements svid.Watcher. Files that are gone, and still are at the next look, withdraw the SVID; files that
// cannot be read or understood leave the one before in use, because a writer may be in the middle of replacing them. Roots
// that are gone are so when they still are at the next look, too, in the same files: live connections end with the trust in
// them.
func (s *Source) Watch(ctx context.Context, _ svid.Pod, id spiffeid.ID, emit func(svid.Update)) error {
	var last, doubted digest
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		all, u, err := s.read(id)
		gone := errors.Is(err, os.ErrNotExist)
		switch left := s.left(id, gone); {
		case gone && left:
			return &svid.WithdrawnError{Err: fmt.Errorf("SVID files: %w", err)}
		case gone && last != digest{}: // what is in use stays until the next look
		case err != nil:
			return fmt.Errorf("SVID files: %w", err)
		case all == last:
			doubted = digest{} // it was a writer's moment, and the next one is another
		case all != doubted && s.lacks(id, u.SVIDs[0].Roots):
			doubted = all
		default:
			last, doubted = all, digest{}
			s.give(id, u.SVIDs[0].Roots)
			emit(u)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// lacks reports whether roots are none, or not all of those that were given before, be it by another stream.
func (s *Source) lacks(id spiffeid.ID, roots []*x509.Certificate) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(roots) == 0 || slices.ContainsFunc(s.roots[id], func(c *x509.Certificate) bool { return !slices.ContainsFunc(roots, c.Equal) })
}

// give notes what is given for id. Identities are of pods of this node, which are not that many; with as many as it holds
// at most, all are forgotten, which costs no more than a look without doubt.
func (s *Source) give(id spiffeid.ID, roots []*x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.roots[id]; !ok && len(s.roots) >= maxKnown {
		clear(s.roots)
	}
	s.roots[id] = roots
}

// left notes whether id's files are gone now, and reports whether they have been for long enough that no writer is in
// the middle of making them anew. It outlives a stream: one that has shown nothing yet ends at once, so that it takes
// nobody's place.
func (s *Source) left(id spiffeid.ID, gone bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !gone {
		delete(s.gone, id)
		return false
	}
	now := time.Now()
	since, ok := s.gone[id]
	if !ok {
		maps.DeleteFunc(s.gone, func(_ spiffeid.ID, at time.Time) bool { return now.Sub(at) > forgetAfter })
		s.gone[id] = now
	}
	return ok && now.Sub(since) >= s.every*3/4 // tickers are not exact
}

// folder is where id's files are.
func (s *Source) folder(id spiffeid.ID) string {
	below := filepath.Join(s.dir, filepath.FromSlash(strings.TrimPrefix(id.Path(), "/"))) // a SPIFFE ID has no ".."
	if _, err := os.Stat(below); err == nil {
		return below
	}
	if _, err := os.Stat(filepath.Join(s.dir, certName)); err == nil {
		return s.dir
	}
	return below
}

// digest is of all three files: a key may be replaced after its certificate was read.
type digest [sha256.Size]byte

// read returns what there is, and the same understood. The three files are of one moment only if a second look at the
// first shows no change.
func (s *Source) read(id spiffeid.ID) (all digest, u svid.Update, err error) {
	dir := s.folder(id)
	cert, err := readFile(filepath.Join(dir, certName))
	if err != nil {
		return all, u, err
	}
	key, err := readFile(filepath.Join(dir, keyName))
	if err != nil {
		return all, u, err
	}
	roots, err := readFile(filepath.Join(dir, rootsName))
	if err != nil {
		return all, u, err
	}
	again, err := readFile(filepath.Join(dir, certName))
	if err != nil {
		return all, u, err
	}
	if !bytes.Equal(cert, again) {
		return all, u, fmt.Errorf("%s is being replaced", dir)
	}
	one, err := parse(cert, key, roots)
	if err != nil {
		return all, u, fmt.Errorf("%s: %w", dir, err)
	}
	u.SVIDs = []svid.SVID{one}
	return sha256.Sum256(bytes.Join([][]byte{cert, key, roots}, []byte{0})), u, nil
}

func parse(cert, key, roots []byte) (s svid.SVID, err error) {
	if s.Chain, err = mtls.ParsePEM(cert, maxChain); err != nil {
		return s, fmt.Errorf("%s: %w", certName, err)
	}
	if len(s.Chain) == 0 || len(s.Chain[0].URIs) != 1 {
		return s, fmt.Errorf("%s: want a leaf with one URI, its SPIFFE ID", certName)
	}
	if s.ID, err = spiffeid.FromURI(s.Chain[0].URIs[0]); err != nil {
		return s, fmt.Errorf("%s: %w", certName, err)
	}
	if s.Roots, err = mtls.ParsePEM(roots, maxRoots); err != nil {
		return s, fmt.Errorf("%s: %w", rootsName, err)
	}
	block, _ := pem.Decode(key)
	if block == nil {
		return s, fmt.Errorf("%s: no PEM block found", keyName)
	}
	der := block.Bytes
	if block.Type == "EC PRIVATE KEY" || block.Type == "RSA PRIVATE KEY" {
		if der, err = pkcs8(block); err != nil {
			return s, fmt.Errorf("%s: it cannot be read", keyName) // nothing of it goes into an error
		}
	}
	if s.Key, err = svid.ParseKey(der); err != nil {
		return s, fmt.Errorf("%s: %w", keyName, err)
	}
	return s, nil
}

// pkcs8 takes the forms that came before PKCS #8, which cert-manager writes by default.
func pkcs8(block *pem.Block) ([]byte, error) {
	var key any
	var err error
	if block.Type == "EC PRIVATE KEY" {
		key, err = x509.ParseECPrivateKey(block.Bytes)
	} else {
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKCS8PrivateKey(key)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return text, err
}
