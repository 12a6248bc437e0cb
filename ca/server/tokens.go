package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/warren-mesh/warren/ca/bearer"
)

const (
	minToken     = 16 // bytes; 128 random bits in hex are 32
	maxToken     = 4096
	maxTokenFile = 1 << 20
	// settled is how old a file must be before its time and size are believed to say that it did not change: file
	// systems count time coarsely.
	settled = 2 * time.Second
)

// Tokens authenticates nodes by a file of lines `<token> <node>`; empty lines and those that begin with # are skipped.
// A node may have several tokens, so that they can be replaced one after the other. The file is read again when it
// changes: one that does not parse is reported and leaves the old tokens in force, one that is gone or that others may
// read lets nobody in.
type Tokens struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex
	nodes  []node
	loaded fs.FileInfo // as of the last reading
	at     time.Time   // when that was
	err    error       // why nobody is let in
	told   string      // the mistake in the file that was logged last; callers without a token cause readings
}

// node keeps a digest, which has one length for all tokens and does not end up in a dump of memory as the token.
type node struct {
	sum  [sha256.Size]byte
	name string
}

// NewTokens reads the file, so that a mistake in it is found at start. log may be nil.
func NewTokens(path string, log *slog.Logger) (*Tokens, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	nodes, info, err := readTokens(path)
	if err != nil {
		return nil, fmt.Errorf("node tokens: %w", err)
	}
	return &Tokens{path: path, log: log, nodes: nodes, loaded: info, at: time.Now()}, nil
}

// Authenticate implements Authenticator: the caller's bearer token names its node.
func (t *Tokens) Authenticate(ctx context.Context) (Caller, error) {
	token, err := bearer.Token(ctx, maxToken)
	if err != nil {
		return Caller{}, err
	}
	nodes, err := t.current()
	if err != nil {
		return Caller{}, err
	}
	sum := sha256.Sum256([]byte(token))
	var name string
	for _, n := range nodes { // all of them: the time taken tells nothing
		if subtle.ConstantTimeCompare(n.sum[:], sum[:]) == 1 {
			name = n.name
		}
	}
	if name == "" {
		return Caller{}, errors.New("the token is not that of a node")
	}
	return Caller{Node: name}, nil
}

// current is the tokens in force, after a look at whether the file changed.
func (t *Tokens) current() ([]node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	info, err := os.Stat(t.path)
	if err == nil && t.err == nil && t.unchangedLocked(info) {
		return t.nodes, nil
	}
	nodes, info, err := readTokens(t.path)
	var content *contentError
	switch {
	case err == nil:
		if t.err != nil {
			t.log.Info("node tokens are read again", "path", t.path)
		}
		t.nodes, t.err, t.told = nodes, nil, ""
	case errors.As(err, &content):
		if t.told != err.Error() {
			t.log.Error("node tokens do not parse; the old ones stay in force", "path", t.path, "err", err)
		}
		t.told = err.Error()
	default:
		if t.err == nil || t.err.Error() != err.Error() {
			t.log.Error("node tokens cannot be read; no node is let in", "path", t.path, "err", err)
		}
		t.nodes, t.err = nil, err
		return nil, err
	}
	t.loaded, t.at = info, time.Now()
	return t.nodes, nil
}

func (t *Tokens) unchangedLocked(now fs.FileInfo) bool {
	return os.SameFile(t.loaded, now) && now.ModTime().Equal(t.loaded.ModTime()) && now.Size() == t.loaded.Size() &&
		now.Mode() == t.loaded.Mode() && t.at.Sub(now.ModTime()).Abs() > settled // before or, with another clock, after
}

// contentError is a mistake in the file, as opposed to one in reaching it. It never quotes a token.
type contentError struct{ err error }

func (e *contentError) Error() string { return e.err.Error() }
func (e *contentError) Unwrap() error { return e.err }

func readTokens(path string) ([]node, fs.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := checkSecret(f)
	if err != nil {
		return nil, nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err != nil {
		return nil, nil, err
	}
	nodes, err := parseTokens(text)
	if err != nil {
		return nil, info, &contentError{err: fmt.Errorf("%s: %w", path, err)}
	}
	return nodes, info, nil
}

func parseTokens(text []byte) ([]node, error) {
	if len(text) > maxTokenFile {
		return nil, fmt.Errorf("more than %d bytes", maxTokenFile)
	}
	var nodes []node
	seen := map[[sha256.Size]byte]bool{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("line %d: %d fields, want a token and a node's name", n, len(fields))
		}
		if l := len(fields[0]); l < minToken || l > maxToken {
			return nil, fmt.Errorf("line %d: token of %d bytes, want %d to %d", n, l, minToken, maxToken)
		}
		sum := sha256.Sum256([]byte(fields[0]))
		if seen[sum] {
			return nil, fmt.Errorf("line %d: the token is on another line, too", n)
		}
		seen[sum] = true
		nodes = append(nodes, node{sum: sum, name: fields[1]})
	}
	if len(nodes) == 0 {
		return nil, errors.New("no tokens")
	}
	return nodes, nil
}

// unsafe permissions: anything for others, and writing for the group. A group may read, because Kubernetes gives
// secrets to a pod's fsGroup.
const unsafeMode = 0o027

// checkSecret looks at the opened file, not at the path, which could change in between.
func checkSecret(f *os.File) (fs.FileInfo, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", f.Name())
	}
	if m := info.Mode().Perm(); m&unsafeMode != 0 {
		return nil, fmt.Errorf("%s has mode %#o, so that others can read or change it; run chmod 600 on it", f.Name(), m)
	}
	return info, nil
}
