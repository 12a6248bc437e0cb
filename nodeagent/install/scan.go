package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/internal/hostdir"
)

// maxConf bounds a configuration; real ones have a few KiB.
const maxConf = 1 << 20

// kind is what a file is to us.
type kind int

const (
	broken  kind = iota // a runtime cannot read it, nor can we
	network             // of a CNI that may be the primary
	multus              // of a meta plugin, which holds a copy of the primary's
	guest               // of another mesh
	ours                // a copy that we made
)

// file is one that runtimes take for a network configuration.
type file struct {
	name      string
	kind      kind
	data      []byte
	info      hostdir.Info
	plugins   []conflist.Plugin
	why       error         // broken: what is wrong with it
	brokenFor time.Duration // that we have seen it so
}

// guestTypes are the plugins of other meshes.
func guestTypes() []string {
	return []string{"istio-cni", "linkerd-cni", "kmesh-cni", "consul-cni", "kuma-cni", "osm-cni"}
}

func isGuest(typ string) bool { return slices.Contains(guestTypes(), typ) }

func isMultus(typ string) bool { return typ == "multus" || typ == "multus-shim" }

// classify says what a file is, as a runtime would read it.
func classify(name string, data []byte, info hostdir.Info, err error) file {
	f := file{name: name, data: data, info: info, why: err}
	if err == nil {
		f.why = readable(name, data)
	}
	if f.why != nil {
		return f
	}
	// An error is told by what tries to put the entry in.
	f.plugins, _ = conflist.Plugins(data)
	types := f.types()
	switch {
	case conflist.CopyOf(data) != "":
		f.kind = ours
	case slices.ContainsFunc(types, isMultus):
		f.kind = multus
	case slices.ContainsFunc(types, isGuest) && (f.named(guestTypes()) || !slices.ContainsFunc(types, isPrimary)):
		f.kind = guest
	default:
		f.kind = network
	}
	return f
}

// readable returns why a runtime would not take a file.
func readable(name string, data []byte) error {
	if filepath.Ext(name) == ".conflist" {
		_, err := libcni.NetworkConfFromBytes(data)
		return err
	}
	_, err := libcni.NetworkPluginConfFromBytes(data)
	return err
}

func isPrimary(typ string) bool { return !isGuest(typ) && typ != conflist.Type }

// named says whether the file's name has one of the words in it.
func (f file) named(words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(f.name, w) })
}

func (f file) types() []string {
	var types []string
	for _, p := range f.plugins {
		types = append(types, p.Type)
	}
	return types
}

// primaryTypes are the types of the plugins that are neither ours nor another
// mesh's.
func (f file) primaryTypes() []string {
	return slices.DeleteFunc(f.types(), func(t string) bool { return !isPrimary(t) })
}

// has says whether our plugin is one of the file's.
func (f file) has() bool { return slices.Contains(f.types(), conflist.Type) }

// mentions says whether our plugin may be run because of the file: as one of
// its plugins or as one of those that multus keeps inside.
func (f file) mentions() bool { return bytes.Contains(f.data, []byte(`"`+conflist.Type+`"`)) }

// ourName says whether a file of that name can only be a copy of ours.
func (f file) ourName(own string) bool { return f.name == own || strings.HasSuffix(f.name, copySuffix) }

// single says whether the file is a configuration of one plugin, not a list.
func (f file) single() bool { return filepath.Ext(f.name) != ".conflist" }

// scan reads the configurations in the order in which runtimes read them.
func (i *Installer) scan(confs folder) ([]file, error) {
	names, err := confs.Names()
	if err != nil {
		return nil, err
	}
	var files []file
	seen := map[string]sighting{}
	for _, name := range names {
		if !runtimeReads(name) {
			continue
		}
		data, info, err := confs.Read(name, maxConf)
		if errors.Is(err, fs.ErrNotExist) && !confs.Has(name) {
			continue // it has just gone
		}
		f := classify(name, data, info, err)
		if f.kind == broken {
			s := i.broken[name]
			if s.at.IsZero() || s.info != info {
				s = sighting{info, time.Now()}
			}
			seen[name], f.brokenFor = s, time.Since(s.at)
		}
		files = append(files, f)
	}
	i.broken = seen
	return files, nil
}

// sighting is when a file was first seen as it is.
type sighting struct {
	info hostdir.Info
	at   time.Time
}

// effective returns the file that a runtime takes first, and whether it runs our
// plugin because of it.
func effective(files []file) (name string, runs bool) {
	for _, f := range files {
		switch f.kind {
		case broken:
			continue
		case multus:
			return f.name, f.mentions()
		}
		return f.name, f.has()
	}
	return "", false
}

// istioType is the plugin of Istio's node agent.
const istioType = "istio-cni"

// istioIn returns the file by which runtimes run Istio's plugin, empty if by none, and
// whether they run it behind ours. Of what multus keeps inside, the text tells.
func istioIn(files []file, hasBin func(typ string) bool) (name string, follows bool) {
	first, _ := effective(files)
	i := slices.IndexFunc(files, func(f file) bool { return f.name == first && first != "" })
	if i < 0 || !hasBin(istioType) {
		return "", false
	}
	f := files[i]
	theirs, own := slices.Index(f.types(), istioType), slices.Index(f.types(), conflist.Type)
	if f.kind == multus {
		theirs, own = bytes.Index(f.data, []byte(`"`+istioType+`"`)), bytes.Index(f.data, []byte(`"`+conflist.Type+`"`))
	}
	if theirs < 0 {
		return "", false
	}
	return first, own >= 0 && own < theirs
}

func quoted(words []string) string {
	if len(words) == 0 {
		return "nothing"
	}
	var q []string
	for _, w := range words[:min(len(words), 8)] {
		q = append(q, fmt.Sprintf("%.64s", w))
	}
	return strings.Join(q, ", ")
}
