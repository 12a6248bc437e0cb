package install

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/warren-mesh/warren/cni/conflist"
)

// OwnConfName is the default name of our own file: it sorts before all that
// begin with a number or a letter.
const OwnConfName = "00-00-warren.conflist"

// copySuffix makes the name of a copy that lies beside its primary, right
// before it: "-" sorts before ".".
const copySuffix = "-warren.conflist"

// Config is what an Installer needs to know. Paths of folders are the host's.
type Config struct {
	HostRoot   string // where the host's root is seen
	CNIConfDir string // where the runtime reads network configurations
	CNIBinDir  string // where it finds plugins
	// ConfName is the primary CNI's file; empty for the one that runtimes take.
	ConfName string
	// Chained puts the entry into the primary's file where that can be done;
	// otherwise it is in a file of our own, called OwnConfName, which keeps pods
	// in the mesh when the primary writes its file anew.
	Chained     bool
	OwnConfName string // empty for the default
	// AnyBinDir drops the check that the primary's plugins are in CNIBinDir too,
	// for runtimes that look in several folders.
	AnyBinDir bool
	// KeepBinary leaves the binary on the host at Uninstall, where nothing calls
	// it but DELs of pods that were started with it: CRI-O remembers.
	KeepBinary bool

	PluginBinary string         // as this process sees it
	PluginConfig conflist.Entry // its paths are the host's
	StateDir     string         // emptied by Uninstall, as this process sees it; empty for none

	Log   *slog.Logger
	Times Times
}

// Times are the delays that tests shorten; zero values have defaults.
type Times struct {
	Poll   time.Duration // between looks when nothing seems to happen; 2s
	Settle time.Duration // that a broken file may take to become whole; 2s
	Linger time.Duration // that a file which was replaced is kept for those who still write into it; 5s
	Leave  time.Duration // the same, at Uninstall; 500ms
}

func (t Times) withDefaults() Times {
	return Times{
		Poll: cmp.Or(t.Poll, 2*time.Second), Settle: cmp.Or(t.Settle, 2*time.Second),
		Linger: cmp.Or(t.Linger, 5*time.Second), Leave: cmp.Or(t.Leave, 500*time.Millisecond),
	}
}

// validate returns all mistakes at once.
func (c Config) validate() error {
	var errs []error
	for _, p := range []struct{ what, path string }{
		{"the host's root", c.HostRoot}, {"the folder of network configurations", c.CNIConfDir},
		{"the folder of plugins", c.CNIBinDir}, {"the plugin's binary", c.PluginBinary},
	} {
		if !filepath.IsAbs(p.path) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", p.what, p.path))
		}
	}
	if c.ConfName != "" && !runtimeReads(c.ConfName) {
		errs = append(errs, fmt.Errorf("the primary CNI's file: %q is not the name of a .conflist, .conf or .json file", c.ConfName))
	}
	if own := c.OwnConfName; own != "" && (!runtimeReads(own) || filepath.Ext(own) != ".conflist") {
		errs = append(errs, fmt.Errorf("our own file: %q is not the name of a .conflist file", own))
	}
	if c.OwnConfName != "" && c.OwnConfName == c.ConfName {
		errs = append(errs, fmt.Errorf("%q cannot be the primary CNI's file and our own", c.ConfName))
	}
	// Uninstall empties it.
	if s := filepath.Clean(c.StateDir); c.StateDir != "" && (!filepath.IsAbs(s) || strings.Count(s, "/") < 2) {
		errs = append(errs, fmt.Errorf("the state folder: %q must be an absolute path of at least two names", c.StateDir))
	}
	return errors.Join(append(errs, c.PluginConfig.Validate())...)
}

// runtimeReads says whether runtimes take a file of that name for a network
// configuration.
func runtimeReads(name string) bool {
	switch filepath.Ext(name) {
	case ".conflist", ".conf", ".json":
		return filepath.Base(name) == name
	}
	return false
}
