package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"io/fs"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	maxFunction = 75 // lines, first and last included
	maxFile     = 400
	maxMain     = 60
)

// checkDocs wants a package comment of every package.
func checkDocs(t *tree) (wrong []string) {
	has, order := map[string]bool{}, []string{}
	for _, s := range t.sources {
		if _, seen := has[s.dir()]; !seen {
			has[s.dir()] = false
			order = append(order, s.dir())
		}
		if s.file.Doc != nil && strings.TrimSpace(s.file.Doc.Text()) != "" {
			has[s.dir()] = true
		}
	}
	for _, dir := range order {
		if !has[dir] {
			wrong = append(wrong, dir+": no package comment")
		}
	}
	return wrong
}

func checkFormat(t *tree) (wrong []string) {
	for _, s := range t.sources {
		if got, err := format.Source(s.text); err != nil || !bytes.Equal(got, s.text) {
			wrong = append(wrong, s.path+": not as gofmt writes it")
		}
	}
	return wrong
}

// checkSizes bounds functions, files and programs. Tests and generated code are
// as long as they are.
func checkSizes(t *tree) (wrong []string) {
	for _, s := range t.sources {
		if s.test || s.generated {
			continue
		}
		lines := bytes.Count(s.text, []byte("\n"))
		if lines > maxFile {
			wrong = append(wrong, fmt.Sprintf("%s: %d lines, at most %d", s.path, lines, maxFile))
		}
		if path.Base(s.path) == "main.go" && s.file.Name.Name == "main" && lines > maxMain {
			wrong = append(wrong, fmt.Sprintf("%s: %d lines, a program has at most %d", s.path, lines, maxMain))
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1; n > maxFunction {
				wrong = append(wrong, fmt.Sprintf("%s: %s has %d lines, at most %d", s.at(f.Pos()), f.Name.Name, n, maxFunction))
			}
		}
	}
	return wrong
}

// checkNames: no work before main, and no package named after nothing.
func checkNames(t *tree) (wrong []string) {
	vague := []string{"util", "utils", "common", "helper", "helpers", "misc"}
	for _, s := range t.sources {
		if slices.Contains(vague, strings.TrimSuffix(s.file.Name.Name, "_test")) || slices.Contains(vague, path.Base(s.dir())) {
			wrong = append(wrong, s.path+": the package's name says nothing of what it does")
		}
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				wrong = append(wrong, s.at(f.Pos())+": has an init function")
			}
		}
	}
	return wrong
}

// machinePlaces are paths of the developers' machines. They are in pieces, so
// that this file is not among those found.
func machinePlaces() []string {
	return []string{"/wo" + `rk/(main|shared|steering|\.library)\b`, "/ro" + "ot/", "/fa" + "rm/", `\.\./sha` + "red/", "/tmp/pl" + `an\b`}
}

// checkPlaces finds names of one machine in any text file: its paths, and the
// host that modules come from there.
func checkPlaces(t *tree, registry string) (wrong []string, err error) {
	places := machinePlaces()
	if registry != "" {
		places = append(places, regexp.QuoteMeta(registry))
	}
	re := regexp.MustCompile(strings.Join(places, "|"))
	err = t.walk(func(p string) error {
		text, err := fs.ReadFile(t.fsys, p)
		if err != nil || len(text) > 1<<20 || !utf8.Valid(text) {
			return err
		}
		for i, line := range strings.Split(string(text), "\n") {
			if found := re.FindString(line); found != "" {
				wrong = append(wrong, fmt.Sprintf("%s:%d: names a place of one machine: %s", p, i+1, found))
			}
		}
		return nil
	})
	return wrong, err
}

// registryHost is the host that modules come from here, unless it is Go's own default.
func registryHost() string {
	out, err := exec.Command("go", "env", "-changed", "GOPROXY").Output()
	if err != nil {
		return ""
	}
	m := regexp.MustCompile(`://(?:[^/@]*@)?([^/:,|]+)`).FindStringSubmatch(string(out))
	if m == nil {
		return ""
	}
	return m[1]
}
