package event

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	tombstoneDir = "tombstones" // in the state directory
	maxTombstone = 4096         // bytes
	// maxTombstones bounds how many may wait for the agent: many times the pods
	// of a node. Beyond it, the agent finds out from what is gone.
	maxTombstones = 16384
	abandoned     = time.Hour // no plugin writes for so long
)

// Tombstone is a DEL that the agent has not heard of.
type Tombstone struct {
	Key    Key    `json:"key"`
	PodUID string `json:"podUID,omitempty"`
}

func (t Tombstone) check() error { return errors.Join(t.Key.Validate(), checkUID(t.PodUID)) }

// tombstonePath hashes the key: a container ID may be as long as a file name,
// and an interface name may hold almost anything.
func tombstonePath(stateDir string, k Key) string {
	sum := sha256.Sum256([]byte(k.ContainerID + "/" + k.IfName))
	return filepath.Join(stateDir, tombstoneDir, hex.EncodeToString(sum[:])+".json")
}

// WriteTombstone leaves one in the agent's state directory, which is made if it
// is not there. One of the same key is replaced.
func WriteTombstone(stateDir string, t Tombstone) error {
	if err := t.check(); err != nil {
		return fmt.Errorf("event: tombstone: %w", err)
	}
	names, err := os.ReadDir(filepath.Join(stateDir, tombstoneDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("event: tombstone: %w", err)
	}
	if len(names) >= maxTombstones {
		return fmt.Errorf("event: tombstone: %d are waiting in %s already", len(names), stateDir)
	}
	data, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("event: tombstone: %w", err)
	}
	if err := replace(tombstonePath(stateDir, t.Key), data); err != nil {
		return fmt.Errorf("event: tombstone: %w", err)
	}
	return nil
}

// Tombstones returns those in the state directory. Damaged ones are named in
// the error, beside the good ones, and removed: nothing else could be done with
// them.
func Tombstones(stateDir string) ([]Tombstone, error) {
	dir := filepath.Join(stateDir, tombstoneDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("event: tombstones: %w", err)
	}
	var found []Tombstone
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > abandoned {
				errs = append(errs, os.Remove(path)) // its plugin died
			}
			continue
		}
		t, err := readTombstone(path)
		switch {
		case err == nil:
			found = append(found, t)
		case !errors.Is(err, os.ErrNotExist):
			errs = append(errs, fmt.Errorf("event: tombstone %s: %w", path, err), os.Remove(path))
		}
	}
	return found, errors.Join(errs...)
}

func readTombstone(path string) (t Tombstone, err error) {
	data, err := readRoots(path, maxTombstone)
	if err != nil {
		return t, err
	}
	if err := unmarshal(data, &t); err != nil {
		return t, err
	}
	return t, t.check()
}

// RemoveTombstone removes one after the agent has applied it. It may be gone.
func RemoveTombstone(stateDir string, key Key) error {
	if err := os.Remove(tombstonePath(stateDir, key)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("event: tombstone: %w", err)
	}
	return nil
}
