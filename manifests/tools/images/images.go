package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Image is one of ours.
type Image struct {
	Name     string
	Title    string
	Programs map[string]string // path in the image: name of the program
	Entry    []string
	User     string
	Debian   bool // on top of Debian's packages
}

// All are the images. Only the control plane is nobody in particular: the other
// two need capabilities, which a user other than root would not get, because
// Kubernetes grants no ambient ones.
func All() []Image {
	return []Image{
		{
			Name: "warren-nodeagent", Title: "The agent of one node of the Warren mesh, and its CNI plugin", User: "0:0", Debian: true,
			Programs: map[string]string{"usr/local/bin/nodeagent": "nodeagent", "opt/cni/bin/warren-cni": "warren-cni"},
			Entry:    []string{"/usr/local/bin/nodeagent"},
		},
		{
			Name: "warren-proxy", Title: "The proxy of one node of the Warren mesh", User: "0:0",
			Programs: map[string]string{"usr/local/bin/proxy": "proxy"}, Entry: []string{"/usr/local/bin/proxy"},
		},
		{
			Name: "warren-controlplane", Title: "The control plane of the Warren mesh", User: nobody + ":" + nobody,
			Programs: map[string]string{"usr/local/bin/controlplane": "controlplane"}, Entry: []string{"/usr/local/bin/controlplane"},
		},
	}
}

// ForTests is the image of the application that the cluster tests put into pods; it
// is no part of a release.
func ForTests() Image {
	return Image{
		Name: "warren-e2e-app", Title: "The application of Warren's cluster tests", User: "0:0",
		Programs: map[string]string{"meshapp": "meshapp"}, Entry: []string{"/meshapp"},
	}
}

const nobody = "65532"

// Input is what images are built of.
type Input struct {
	Version string
	Arch    string
	Bin     string // folder of the programs for Arch
	License []byte
	Debian  map[Locked][]byte // for Arch
}

// Build makes one image.
func Build(img Image, in Input) (v1.Image, error) {
	var layers []mutate.Addendum
	add := func(what string, t tree) error {
		l, err := t.layer()
		layers = append(layers, mutate.Addendum{Layer: l, History: v1.History{CreatedBy: what, Created: v1.Time{Time: time.Unix(0, 0).UTC()}}})
		return err
	}
	if img.Debian {
		t, err := debian(in.Debian)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", img.Name, err)
		}
		if err := add("Debian packages", t); err != nil {
			return nil, fmt.Errorf("%s: %w", img.Name, err)
		}
	}
	t, err := ours(img, in)
	if err == nil {
		err = add("Warren "+in.Version, t)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", img.Name, err)
	}
	base, err := mutate.ConfigFile(empty.Image, config(img, in))
	if err != nil {
		return nil, err
	}
	return mutate.Append(base, layers...)
}

// debian is the layer of Debian's packages.
func debian(packages map[Locked][]byte) (tree, error) {
	if len(packages) == 0 {
		return nil, errors.New("no Debian package is locked for this architecture")
	}
	t := tree{}
	for l, b := range packages {
		if err := t.unpack(b, l); err != nil {
			return nil, fmt.Errorf("%s: %w", l, err)
		}
	}
	return t, t.alternatives()
}

// ours is the layer of our programs.
func ours(img Image, in Input) (tree, error) {
	t := tree{}
	passwd := "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:" + nobody + ":" + nobody + ":nonroot:/:/sbin/nologin\n"
	group := "root:x:0:\nnonroot:x:" + nobody + ":\n"
	files := []file{
		{Path: "etc/passwd", Mode: 0o644, Body: []byte(passwd)},
		{Path: "etc/group", Mode: 0o644, Body: []byte(group)},
		{Path: "usr/share/doc/warren/LICENSE", Mode: 0o644, Body: in.License},
		{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
	}
	for p, program := range img.Programs {
		b, err := os.ReadFile(filepath.Join(in.Bin, program))
		if err != nil {
			return nil, err
		}
		if err := static(b, in.Arch); err != nil {
			return nil, fmt.Errorf("%s: %w", program, err)
		}
		files = append(files, file{Path: p, Mode: 0o755, Body: b})
	}
	for _, f := range files {
		if err := t.add(f); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// config is the image's own. The working directory matters: the proxy's paths
// of secrets are relative by default, as ztunnel's are.
func config(img Image, in Input) *v1.ConfigFile {
	c := &v1.ConfigFile{
		Architecture: in.Arch, OS: "linux", Created: v1.Time{Time: time.Unix(0, 0).UTC()}, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			User: img.User, Entrypoint: img.Entry, WorkingDir: "/",
			Env: []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin"},
			Labels: map[string]string{
				"org.opencontainers.image.title":    img.Title,
				"org.opencontainers.image.version":  in.Version,
				"org.opencontainers.image.licenses": "Apache-2.0",
			},
		},
	}
	if in.Arch == "arm64" {
		c.Variant = "v8"
	}
	return c
}

// Save writes an image as `docker save` would, under the tag name:version.
func Save(path string, img v1.Image, repository, version string) error {
	tag, err := name.NewTag(repository+":"+version, name.StrictValidation)
	if err != nil {
		tag, err = name.NewTag(repository + ":" + version)
	}
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := tarball.WriteToFile(tmp, tag, img); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}
