package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
)

// maxFiles and maxTotalBytes bound the folder. Files past them are not taken: new ones
// first, in the order of their names.
const (
	maxFiles      = 10_000
	maxTotalBytes = 256 << 20
)

// settled is how old a change must be before size and time alone prove that a file
// is as it was when last read: file times are coarser than two quick writes.
const settled = 2 * time.Second

// fileState is what is known about one file.
type fileState struct {
	info    fs.FileInfo // when last read; nil when it could not be
	trusted bool        // info is old enough to prove that nothing changed
	size    int
	sum     uint64   // of the bytes last read
	objects []object // from when it was last good
	taken   bool     // it was good once
	bad     string   // why the newest bytes are not taken; empty when they are
}

// scanner reads a folder again and again, and remembers what it held.
type scanner struct {
	dir     string
	decoder *decoder
	files   map[string]*fileState
	scanned bool                              // once, and files are what it held
	folder  string                            // what was wrong with the folder at the last scan
	unknown func(file string, kinds []string) // called with every file read that holds kinds nobody reads

	maxFiles, maxBytes int
	readDir            func(folder string) ([]os.DirEntry, error)
	stat               func(folder string) (os.FileInfo, error)
}

func newScanner(dir string, unknown func(file string, kinds []string)) *scanner {
	return &scanner{
		dir: dir, decoder: newDecoder(), files: make(map[string]*fileState), unknown: unknown,
		maxFiles: maxFiles, maxBytes: maxTotalBytes, readDir: os.ReadDir, stat: os.Stat,
	}
}

// scan reads what is new. It reports whether anything is different from the scan
// before, and fails only when the folder itself cannot be read; then all it knew stays.
func (s *scanner) scan(now time.Time) (changed bool, err error) {
	names, err := s.list()
	if err != nil {
		return s.unreadable(err)
	}
	var r reading
	// A file that is renamed while the folder is listed or read can be missing under both
	// names, in two lists one after the other, too. Its objects must not go for that, nor the
	// folder be taken for read without them: what counts is the list of a folder at rest, and
	// where it does not come to rest the one with most.
	for range maxRescans {
		before := s.changedAt()
		next := s.readAll(names, now)
		if len(next.files) >= len(r.files) {
			r = next
		}
		if s.scanned && !s.lost(next.files) {
			break
		}
		atRest := time.Since(before) > tick // so that from now on each change shows
		again, err := s.list()
		if err != nil {
			return s.unreadable(err)
		}
		if atRest && !next.missed && slices.Equal(again, names) && s.changedAt().Equal(before) {
			r = next
			break
		}
		names = again
	}
	for name := range s.files {
		r.changed = r.changed || r.files[name] == nil
	}
	s.files, s.scanned = r.files, true
	return s.complain(r.refused) || r.changed, nil
}

func (s *scanner) unreadable(err error) (changed bool, _ error) {
	return s.complain(fmt.Sprintf("cannot read the folder: %v; what it held stays", err)), err
}

// maxRescans bounds a scan of a folder that does not come to rest.
const maxRescans = 10

// tick is longer than what two changes of a folder may lie apart and leave the same time.
const tick = 20 * time.Millisecond

// changedAt is when a name in the folder changed last; now, if that cannot be told.
func (s *scanner) changedAt() time.Time {
	info, err := s.stat(s.dir)
	if err != nil {
		return time.Now()
	}
	return info.ModTime()
}

// list returns the names of the files that are read, sorted.
func (s *scanner) list() ([]string, error) {
	entries, err := s.readDir(s.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if wanted(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// lost reports whether a file that was known is not there any more.
func (s *scanner) lost(next map[string]*fileState) bool {
	for name := range s.files {
		if next[name] == nil {
			return true
		}
	}
	return false
}

// reading is what was found when files were looked at once.
type reading struct {
	files   map[string]*fileState
	changed bool   // something is different from the scan before
	missed  bool   // a file that was listed was not there
	refused string // what was too much
}

// readAll looks at files, those that are known first: where the folder has grown too
// large, a new file must not push out one whose objects are in force.
func (s *scanner) readAll(names []string, now time.Time) reading {
	r := reading{files: make(map[string]*fileState, len(names))}
	var total int
	for _, known := range []bool{true, false} {
		for _, name := range names {
			old := s.files[name]
			if known != (old != nil) {
				continue
			}
			if len(r.files) == s.maxFiles || total > s.maxBytes {
				if old != nil {
					r.files[name] = old
				}
				if r.refused == "" {
					r.refused = fmt.Sprintf("more than %d files or %d MiB: %s and files after it are not taken", s.maxFiles, s.maxBytes>>20, name)
				}
				continue
			}
			f, different := s.look(name, old, now)
			r.changed = r.changed || different
			if f == nil {
				r.missed = true
				continue
			}
			r.files[name] = f
			total += f.size
		}
	}
	return r
}

// complain notes what is wrong with the folder and reports whether that is new.
func (s *scanner) complain(reason string) bool {
	changed := s.folder != reason
	s.folder = reason
	return changed
}

// untaken lists the files of which no state was ever good, and what is wrong with the folder.
func (s *scanner) untaken() []Problem {
	var out []Problem
	if s.folder != "" {
		out = append(out, Problem{Reason: s.folder})
	}
	for _, name := range sortedNames(s.files) {
		if f := s.files[name]; !f.taken {
			out = append(out, Problem{File: name, Reason: f.bad})
		}
	}
	return out
}

func wanted(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// look returns the state of one file after the state that it had, nil when it is gone.
func (s *scanner) look(name string, old *fileState, now time.Time) (f *fileState, different bool) {
	path := filepath.Join(s.dir, name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if link, lerr := os.Lstat(path); lerr != nil || link.Mode()&fs.ModeSymlink == 0 {
			return nil, old != nil // removed between listing and looking; it may be back by now
		}
		err = errors.New("a symbolic link that leads nowhere")
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("not a regular file (%s)", info.Mode().Type())
	}
	if err != nil {
		return old.reject(nil, 0, 0, err)
	}
	if old != nil && old.trusted && os.SameFile(old.info, info) && old.info.Size() == info.Size() && old.info.ModTime().Equal(info.ModTime()) {
		return old, false
	}
	data, info, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, old != nil // removed between looking and reading
	}
	if err != nil {
		return old.reject(nil, 0, 0, err)
	}
	sum := xxhash.Sum64(data)
	trusted := now.Sub(info.ModTime()) > settled
	if old != nil && old.info != nil && old.sum == sum && old.size == len(data) {
		same := *old
		same.info, same.trusted = info, trusted
		return &same, false
	}
	content, err := s.decoder.decode(name, data)
	if err != nil {
		f, different = old.reject(info, len(data), sum, err)
		f.trusted = trusted
		return f, different
	}
	if len(content.unknown) > 0 {
		s.unknown(name, content.unknown)
	}
	return &fileState{info: info, trusted: trusted, size: len(data), sum: sum, objects: content.objects, taken: true}, true
}

// reject returns the state of a file whose newest bytes are not taken. It may be
// called on nil, a file never seen.
func (f *fileState) reject(info fs.FileInfo, size int, sum uint64, err error) (*fileState, bool) {
	next := &fileState{info: info, size: size, sum: sum, bad: "not taken: " + err.Error()}
	if f == nil {
		return next, true
	}
	next.taken = f.taken
	if next.objects = f.objects; len(next.objects) > 0 {
		next.bad += fmt.Sprintf("; its %d objects from before stay", len(next.objects))
	}
	return next, next.bad != f.bad
}

// read returns the bytes of a file, no more than one past the limit, and the state
// of the very file they came from, which a rename may just have put there.
func read(path string) (data []byte, info fs.FileInfo, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	data, err = io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	return data, info, err
}
