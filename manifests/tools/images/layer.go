package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// file is one entry of a layer: a directory, a symbolic link if Link is set, or
// a file. All belong to root and are of the same time, so that a layer depends
// on nothing but what is in it.
type file struct {
	Path string // without a slash at either end
	Mode fs.FileMode
	Body []byte
	Link string
}

// tree is the content of a layer by path.
type tree map[string]file

// add puts a file into the tree and the directories above it. What is there
// already may come again if it is the same.
func (t tree) add(f file) error {
	if f.Path == "" || path.Clean("/"+f.Path) != "/"+f.Path {
		return fmt.Errorf("%q is no clean path", f.Path)
	}
	if old, ok := t[f.Path]; ok {
		if old.Mode.IsDir() && f.Mode.IsDir() {
			return nil
		}
		if old.Mode != f.Mode || old.Link != f.Link || !bytes.Equal(old.Body, f.Body) {
			return fmt.Errorf("/%s is there twice, and not the same", f.Path)
		}
	}
	if dir := path.Dir(f.Path); dir != "." {
		if up, ok := t[dir]; ok && !up.Mode.IsDir() {
			return fmt.Errorf("/%s: /%s is no directory", f.Path, dir)
		} else if !ok {
			if err := t.add(file{Path: dir, Mode: fs.ModeDir | 0o755}); err != nil {
				return err
			}
		}
	}
	t[f.Path] = f
	return nil
}

// layer writes the tree as a layer, in the order of its paths.
func (t tree) layer() (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	paths := make([]string, 0, len(t))
	for p := range t {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		f := t[p]
		if err := w.WriteHeader(header(f)); err != nil {
			return nil, fmt.Errorf("/%s: %w", p, err)
		}
		if _, err := w.Write(f.Body); err != nil {
			return nil, fmt.Errorf("/%s: %w", p, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	}, tarball.WithCompressionLevel(gzip.DefaultCompression), tarball.WithCompressedCaching)
}

func header(f file) *tar.Header {
	h := &tar.Header{Name: f.Path, Mode: int64(f.Mode.Perm()), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	if f.Mode&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	switch {
	case f.Mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, strings.TrimSuffix(f.Path, "/")+"/"
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
	default:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(f.Body))
	}
	return h
}
