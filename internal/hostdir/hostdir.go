package hostdir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	maxLinks = 40   // on one path, as in Linux
	maxNames = 4096 // of one folder
)

// Dir is a folder. The folder stays the same when its path comes to mean
// another one.
type Dir struct {
	host  *os.Root
	at    *os.Root
	real  string // its path below host, without links
	asked string // its path on the host, as it was asked for
}

// Open opens the folder that path, an absolute one, means on the host whose
// root is seen at hostRoot. Its error matches fs.ErrNotExist if it is not there.
func Open(hostRoot, path string) (*Dir, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%s is not an absolute path", path)
	}
	host, err := os.OpenRoot(hostRoot)
	if err != nil {
		return nil, fmt.Errorf("the host's root: %w", err)
	}
	d := &Dir{host: host, asked: filepath.Clean(path)}
	if d.real, err = resolve(host, path); err == nil {
		d.at, err = host.OpenRoot(d.real)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("folder %s of the host: %w", path, err), host.Close())
	}
	return d, nil
}

// resolve follows links as the host would. What it returns is a path below
// host; if links change meanwhile it may name something else there, but nothing
// outside: host sees to that.
func resolve(host *os.Root, path string) (string, error) {
	todo, done, links := strings.Split(path, "/"), ".", 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = filepath.Dir(done) // of the root it is the root
			continue
		}
		next := filepath.Join(done, part)
		info, err := host.Lstat(next)
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: %w", path, syscall.ELOOP)
		}
		target, err := host.Readlink(next)
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			done = "."
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return done, nil
}

// Close closes the folder.
func (d *Dir) Close() error { return errors.Join(d.at.Close(), d.host.Close()) }

// Path is the folder's path on the host, as it was given to Open.
func (d *Dir) Path() string { return d.asked }

// Seen is where this process sees the folder.
func (d *Dir) Seen() string { return filepath.Join(d.host.Name(), d.real) }

// Info is what is known of a file without reading it. Equal values of the same
// name mean equal content, as far as file systems can tell.
type Info struct {
	Mode     fs.FileMode // of what a link leads to
	Link     bool        // the name is a symbolic link
	UID, GID int
	Size     int64
	Dev, Ino uint64
	Modified unix.Timespec
	Changed  unix.Timespec // no program can set it
}

func infoOf(st *unix.Stat_t) Info {
	return Info{
		Mode: fs.FileMode(st.Mode & 0o777), UID: int(st.Uid), GID: int(st.Gid), Size: st.Size,
		Dev: st.Dev, Ino: st.Ino, Modified: st.Mtim, Changed: st.Ctim,
	}
}

// Names lists what is in the folder but folders, in the order of bytes.
func (d *Dir) Names() ([]string, error) {
	f, err := d.at.Open(".")
	if err != nil {
		return nil, d.fail("list", "", err)
	}
	defer f.Close()
	entries, err := f.ReadDir(maxNames + 1)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, d.fail("list", "", err)
	case len(entries) > maxNames:
		return nil, d.fail("list", "", fmt.Errorf("more than %d files", maxNames))
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Has says whether there is something of that name; where a link leads does not
// matter.
func (d *Dir) Has(name string) bool {
	_, err := d.at.Lstat(name)
	return plain(name) == nil && err == nil
}

// Stat looks at a regular file, or at where a link leads.
func (d *Dir) Stat(name string) (Info, error) {
	f, info, err := d.open(name)
	if err != nil {
		return info, d.fail("look at", name, err)
	}
	return info, f.Close()
}

// Open opens a regular file, or what a link leads to, for reading.
func (d *Dir) Open(name string) (io.ReadCloser, Info, error) {
	f, info, err := d.open(name)
	if err != nil {
		return nil, info, d.fail("open", name, err)
	}
	return f, info, nil
}

// Read reads a regular file, or what a link leads to, of at most limit bytes.
func (d *Dir) Read(name string, limit int64) ([]byte, Info, error) {
	f, info, err := d.open(name)
	if err != nil {
		return nil, info, d.fail("read", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, info, d.fail("read", name, err)
	case int64(len(data)) > limit:
		return nil, info, d.fail("read", name, fmt.Errorf("it has more than %d bytes", limit))
	}
	return data, info, nil
}

// open never waits, as for a pipe's other end.
func (d *Dir) open(name string) (*os.File, Info, error) {
	if err := plain(name); err != nil {
		return nil, Info{}, err
	}
	l, err := d.at.Lstat(name)
	if err != nil {
		return nil, Info{}, err
	}
	root, path, link := d.at, name, l.Mode()&fs.ModeSymlink != 0
	if link {
		if path, err = resolve(d.host, filepath.Join(d.real, name)); err != nil {
			return nil, Info{Link: true}, fmt.Errorf("it is a link: %w", err)
		}
		root = d.host
	}
	f, err := root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, Info{Link: link}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, Info{Link: link}, errors.Join(err, f.Close())
	}
	info := infoOf(&st)
	info.Link = link
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, info, errors.Join(errors.New("it is not a regular file"), f.Close())
	}
	return f, info, nil
}

// plain refuses what is not the name of something in the folder itself.
func plain(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return fmt.Errorf("%q is not the name of a file", name)
	}
	return nil
}

// fail names the file as the host knows it.
func (d *Dir) fail(what, name string, err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err // the path in it is one below the root
	}
	var link *os.LinkError
	if errors.As(err, &link) {
		err = link.Err
	}
	return fmt.Errorf("%s %s: %w", what, filepath.Join(d.asked, name), err)
}
