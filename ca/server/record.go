package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/warren-mesh/warren/ca/rotation"
)

// A record is never changed: the next one gets the next number, which only one writer can take. The highest counts.
const (
	recordPrefix = "rotation."
	recordSuffix = ".json"
	issuedDir    = "issued"
	firstVersion = "0" // where there is no record
)

func recordName(n int) string { return recordPrefix + strconv.Itoa(n) + recordSuffix }

// records are the numbers of those that are there.
func records(root *os.Root) (numbers []int, err error) {
	names, err := list(root, ".")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		text, is := strings.CutPrefix(name, recordPrefix)
		if text, ok := strings.CutSuffix(text, recordSuffix); is && ok {
			if n, err := strconv.Atoi(text); err == nil && n > 0 {
				numbers = append(numbers, n)
			}
		}
	}
	return numbers, nil
}

func list(root *os.Root, dir string) ([]string, error) {
	d, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// readRecord returns the record and its number. One that was replaced while we looked is looked for again.
func readRecord(root *os.Root) (r rotation.Record, version string, err error) {
	for range 10 {
		numbers, err := records(root)
		if err != nil {
			return r, "", err
		}
		last := 0
		for _, n := range numbers {
			last = max(last, n)
		}
		if last == 0 {
			return r, firstVersion, nil
		}
		text, err := readFile(root, recordName(last))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return r, "", err
		}
		if r, err = rotation.Decode(text); err != nil {
			return r, "", fmt.Errorf("%s: %w", recordName(last), err)
		}
		return r, strconv.Itoa(last), nil
	}
	return r, "", rotation.ErrChanged
}

// WriteRecord implements rotation.Store.
func (s *StateDir) WriteRecord(_ context.Context, k rotation.Kept, r rotation.Record) error {
	text, err := r.Encode()
	if err != nil {
		return err
	}
	return s.do(func(root *os.Root) error {
		before, err := strconv.Atoi(k.Version)
		if err != nil {
			return fmt.Errorf("version %q of the record", k.Version)
		}
		if won, err := link(root, recordName(before+1), text, 0o600); err != nil {
			return err
		} else if !won {
			return rotation.ErrChanged
		}
		numbers, err := records(root)
		if err != nil {
			return err
		}
		for _, n := range numbers {
			if n > before+1 {
				return rotation.ErrChanged
			}
			if n <= before {
				if err := root.Remove(recordName(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
		return nil
	})
}

// Replicas implements rotation.Store.
func (s *StateDir) Replicas(context.Context) (all []rotation.Replica, err error) {
	err = s.look(func(root *os.Root) error {
		names, err := list(root, issuedDir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if !strings.HasSuffix(name, recordSuffix) || strings.HasPrefix(name, ".") {
				continue
			}
			text, err := readFile(root, path.Join(issuedDir, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			var r rotation.Replica
			if err == nil {
				err = json.Unmarshal(text, &r)
			}
			if err != nil {
				return fmt.Errorf("%s: %w; remove it only if no certificate can be valid that the control plane of that name signed", path.Join(issuedDir, name), err)
			}
			all = append(all, r)
		}
		return nil
	})
	return all, err
}

// WriteReplica implements rotation.Store.
func (s *StateDir) WriteReplica(_ context.Context, r rotation.Replica, remove []string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.do(func(root *os.Root) error {
		err := root.Mkdir(issuedDir, 0o755)
		if err == nil {
			err = adopt(root, func(uid, gid int) error { return root.Chown(issuedDir, uid, gid) })
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := errors.Join(sweep(root, ".", time.Now()), sweep(root, issuedDir, time.Now())); err != nil {
			return err
		}
		for _, name := range remove {
			if err := root.Remove(path.Join(issuedDir, name+recordSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return replace(root, path.Join(issuedDir, r.Name+recordSuffix), text, 0o644)
	})
}
