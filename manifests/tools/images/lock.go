package images

import (
	"bufio"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// Locked is one Debian package as it must be.
type Locked struct {
	Arch    string // Debian's word for it, which is Go's for the two that we build
	Name    string
	Version string
	SHA256  string
}

// String is the package as apt-get takes it.
func (l Locked) String() string { return l.Name + ":" + l.Arch + "=" + l.Version }

// Debian's own rules, or narrower: nothing here can be an option of apt-get or a path.
var (
	archRE    = regexp.MustCompile(`^[a-z][a-z0-9]{2,15}$`)
	nameRE    = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,63}$`)
	versionRE = regexp.MustCompile(`^[0-9][A-Za-z0-9.+:~-]{0,63}$`)
)

// ParseLock reads lines of architecture, package, version and SHA-256. Empty
// lines and those that begin with # are comments.
func ParseLock(r io.Reader) ([]Locked, error) {
	var list []Locked
	var errs []error
	seen := map[string]bool{}
	scan := bufio.NewScanner(r)
	for n := 1; scan.Scan(); n++ {
		line := strings.TrimSpace(scan.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 4 || !archRE.MatchString(f[0]) || !nameRE.MatchString(f[1]) || !versionRE.MatchString(f[2]) || !isSHA256(f[3]) {
			errs = append(errs, fmt.Errorf("line %d: %q is not architecture, package, version and SHA-256", n, line))
			continue
		}
		l := Locked{f[0], f[1], f[2], f[3]}
		if key := l.Arch + " " + l.Name; seen[key] {
			errs = append(errs, fmt.Errorf("line %d: %s is there twice", n, key))
		} else {
			seen[key] = true
			list = append(list, l)
		}
	}
	return list, errors.Join(append(errs, scan.Err())...)
}

func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && s == strings.ToLower(s)
}

// FormatLock writes what ParseLock reads.
func FormatLock(list []Locked) []byte {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Locked) int {
		return cmp.Or(strings.Compare(a.Arch, b.Arch), strings.Compare(a.Name, b.Name))
	})
	var b strings.Builder
	b.WriteString("# The Debian packages in the node agent's image: architecture, package, version, SHA-256 of the .deb.\n")
	b.WriteString("# Written by `make images-lock`, which takes the newest that this machine's apt sources have.\n")
	for _, l := range list {
		fmt.Fprintln(&b, l.Arch, l.Name, l.Version, l.SHA256)
	}
	return []byte(b.String())
}
