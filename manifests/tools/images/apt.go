package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Archs are those that images are built for, in Go's and in Debian's words.
func Archs() []string { return []string{"amd64", "arm64"} }

// Wanted are the packages that the node agent needs; apt adds what they need.
// base-files says which Debian it is, and has the licenses.
func Wanted() []string { return []string{"base-files", "ipset", "iptables"} }

// unneeded are packages that others depend on and that no program here uses:
// gcc-12-base has only documentation, the others are base-files' own needs for
// its scripts.
func unneeded(name string) bool {
	return strings.HasPrefix(name, "gcc-") || name == "awk" || name == "mawk"
}

// apt is a package manager of its own for foreign architectures: it shares the
// machine's sources and keys, and nothing else. It verifies signatures.
type apt struct{ dir string }

func newAPT(dir string, archs []string) (*apt, error) {
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "got"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	var quoted strings.Builder
	for _, a := range archs {
		fmt.Fprintf(&quoted, " %q;", a)
	}
	conf := fmt.Sprintf(`APT::Architecture %q;
APT::Architectures {%s };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "3";
Dir::State %q;
Dir::State::status %q;
Dir::Cache %q;
`, archs[0], quoted.String(), filepath.Join(dir, "state"), filepath.Join(dir, "status"), filepath.Join(dir, "cache"))
	return &apt{dir}, errors.Join(
		os.WriteFile(filepath.Join(dir, "status"), nil, 0o644),
		os.WriteFile(filepath.Join(dir, "apt.conf"), []byte(conf), 0o644),
	)
}

// run runs a program of apt's; its output is in the error, for it names what
// could not be had.
func (a *apt) run(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = filepath.Join(a.dir, "got")
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(a.dir, "apt.conf"), "LC_ALL=C")
	var errText strings.Builder
	cmd.Stderr = &errText
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, strings.TrimSpace(errText.String()))
	}
	return string(out), nil
}

func (a *apt) update(ctx context.Context) error {
	_, err := a.run(ctx, "apt-get", "-q", "update")
	return err
}

// Fetch returns the .deb of each package, out of the folder cache or from the
// archive, with the locked content and no other.
func Fetch(ctx context.Context, cache string, list []Locked) (map[Locked][]byte, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	got, missing := map[Locked][]byte{}, []string{}
	for _, l := range list {
		if b, err := os.ReadFile(cached(cache, l)); err == nil && sum(b) == l.SHA256 {
			got[l] = b
		} else {
			missing = append(missing, l.String())
		}
	}
	if len(missing) == 0 {
		return got, nil
	}
	dir, err := os.MkdirTemp(cache, "apt")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	a, err := newAPT(dir, Archs())
	if err != nil {
		return nil, err
	}
	if err := a.update(ctx); err != nil {
		return nil, err
	}
	if _, err := a.run(ctx, "apt-get", append([]string{"-q", "download"}, missing...)...); err != nil {
		return nil, fmt.Errorf("%w\n(what the archive no longer has is replaced by `make images-lock`)", err)
	}
	return got, a.collect(cache, list, got)
}

// collect moves what was downloaded into the cache.
func (a *apt) collect(cache string, list []Locked, got map[Locked][]byte) error {
	found := map[string][]byte{} // by sum
	files, err := filepath.Glob(filepath.Join(a.dir, "got", "*.deb"))
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		found[sum(b)] = b
	}
	for _, l := range list {
		if _, have := got[l]; have {
			continue
		}
		b, ok := found[l.SHA256]
		if !ok {
			return fmt.Errorf("the archive's %s is not the locked one: nothing that was downloaded has the sum %s", l, l.SHA256)
		}
		got[l] = b
		tmp := cached(cache, l) + ".new"
		if err := errors.Join(os.WriteFile(tmp, b, 0o644), os.Rename(tmp, cached(cache, l))); err != nil {
			return err
		}
	}
	return nil
}

func cached(cache string, l Locked) string { return filepath.Join(cache, l.SHA256+".deb") }

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// Resolve finds the newest versions of the wanted packages and all that they
// depend on.
func Resolve(ctx context.Context, archs []string) ([]Locked, error) {
	var list []Locked
	for _, arch := range archs {
		found, err := resolve(ctx, arch)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", arch, err)
		}
		list = append(list, found...)
	}
	return list, nil
}

func resolve(ctx context.Context, arch string) ([]Locked, error) {
	dir, err := os.MkdirTemp("", "warren-apt")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	a, err := newAPT(dir, []string{arch})
	if err != nil {
		return nil, err
	}
	if err := a.update(ctx); err != nil {
		return nil, err
	}
	plan, err := a.run(ctx, "apt-get", append([]string{"-q", "-s", "install"}, Wanted()...)...)
	if err != nil {
		return nil, err
	}
	var list []Locked
	for _, m := range installRE.FindAllStringSubmatch(plan, -1) {
		l := Locked{Arch: arch, Name: m[1], Version: m[2]}
		if unneeded(l.Name) {
			continue
		}
		record, err := a.run(ctx, "apt-cache", "show", "--no-all-versions", l.Name+"="+l.Version)
		if err != nil {
			return nil, err
		}
		sha := sumRE.FindStringSubmatch(record)
		if sha == nil {
			return nil, fmt.Errorf("apt-cache knows no SHA-256 of %s", l)
		}
		l.SHA256 = sha[1]
		list = append(list, l)
	}
	if len(list) < len(Wanted()) {
		return nil, fmt.Errorf("apt-get plans to install only %v", list)
	}
	return list, nil
}

var (
	installRE = regexp.MustCompile(`(?m)^Inst (\S+?)(?::\S+)? \((\S+) `)
	sumRE     = regexp.MustCompile(`(?m)^SHA256: ([0-9a-f]{64})$`)
)
