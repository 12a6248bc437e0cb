package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "github.com/warren-mesh/warren"

// source is one Go file of a tree.
type source struct {
	path      string // slash-separated, from the top of the tree
	text      []byte
	fset      *token.FileSet
	file      *ast.File
	test      bool // a _test.go file
	generated bool
}

func (s *source) dir() string { return path.Dir(s.path) }

// at names a place in the file.
func (s *source) at(p token.Pos) string {
	return fmt.Sprintf("%s:%d", s.path, s.fset.Position(p).Line)
}

// imports returns the paths that the file imports, and their places.
func (s *source) imports() (paths []string, at []token.Pos) {
	for _, i := range s.file.Imports {
		if p, err := strconv.Unquote(i.Path.Value); err == nil {
			paths, at = append(paths, p), append(at, i.Pos())
		}
	}
	return paths, at
}

// locals returns the names by which the file knows an imported package: none, or
// one for each time that it imports it.
func (s *source) locals(importPath string) (names []string) {
	for _, i := range s.file.Imports {
		if p, _ := strconv.Unquote(i.Path.Value); p == importPath {
			if i.Name != nil {
				names = append(names, i.Name.Name)
			} else {
				names = append(names, path.Base(p))
			}
		}
	}
	return names
}

// tree is a repository, or one made up for a test.
type tree struct {
	fsys    fs.FS
	sources []*source
}

// load parses every Go file of the tree, whatever system it is for.
func load(fsys fs.FS) (*tree, error) {
	t := &tree{fsys: fsys}
	err := t.walk(func(p string) error {
		// The file at the top holds dependencies for code to come.
		if path.Ext(p) != ".go" || path.Dir(p) == "." {
			return nil
		}
		text, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		s := &source{path: p, text: text, fset: token.NewFileSet(), test: strings.HasSuffix(p, "_test.go")}
		if s.file, err = parser.ParseFile(s.fset, p, text, parser.ParseComments); err != nil {
			return err
		}
		s.generated = ast.IsGenerated(s.file)
		t.sources = append(t.sources, s)
		return nil
	})
	return t, err
}

// walk visits the files that belong to the repository, those below testdata
// aside.
func (t *tree) walk(visit func(path string) error) error {
	return fs.WalkDir(t.fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() {
			return visit(p)
		}
		switch name := d.Name(); {
		case p == ".":
			return nil
		case name == "testdata", p == "bin", p == "out", strings.HasPrefix(name, ".") && name != ".ci":
			return fs.SkipDir
		}
		return nil
	})
}

// repository loads this one.
func repository(t *testing.T) *tree {
	t.Helper()
	repo, err := load(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// fixture loads a tree from an archive: files, each after a line "-- path --".
// They are not kept as files, because the tools would take them for ours.
func fixture(t *testing.T, archive string) *tree {
	t.Helper()
	text, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{}
	var name string
	for line := range bytes.Lines(text) {
		if after, ok := strings.CutPrefix(string(line), "-- "); ok {
			name = strings.TrimSuffix(strings.TrimSpace(after), " --")
			files[name] = &fstest.MapFile{}
		} else if name != "" {
			files[name].Data = append(files[name].Data, line...)
		}
	}
	tree, err := load(files)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// lines returns a file's lines that are not empty.
func (t *tree) lines(tb testing.TB, name string) []string {
	tb.Helper()
	text, err := fs.ReadFile(t.fsys, name)
	if err != nil {
		tb.Fatal(err)
	}
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' })
}
