package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// AwayName is the name of the away file in the agent's state directory.
const AwayName = "away.json"

// The modes of a namespace in the away file.
const (
	NSOut   = "out"   // no pod in it is in the mesh
	NSIn    = "in"    // its pods are
	NSMixed = "mixed" // some pods are, by their own labels
)

const (
	awayVersion = 1
	maxAway     = 8 << 20 // some 80 bytes a namespace
)

// Away is what the agent leaves for the plugin to decide by while it is away.
type Away struct {
	// Namespaces has the mode of every namespace of the cluster. One that is
	// missing is not known: it may be newer than the file.
	Namespaces map[string]string
	// Others is the mode of those that are missing; empty: they are not known.
	Others string
}

// Mode is what is known of a namespace; empty: nothing.
func (a Away) Mode(namespace string) string {
	if mode := a.Namespaces[namespace]; mode != "" {
		return mode
	}
	return a.Others
}

// awayFile is its form on disk.
type awayFile struct {
	Version    int               `json:"version"`
	Namespaces map[string]string `json:"namespaces"`
	Others     string            `json:"others,omitempty"`
}

// ReadAway reads the away file. Its error matches os.ErrNotExist if there is
// none. One that is damaged, of another version, or that others than root may
// write, is an error too: nothing in it may be relied on.
func ReadAway(path string) (Away, error) {
	data, err := readRoots(path, maxAway)
	if err != nil {
		return Away{}, fmt.Errorf("event: away file: %w", err)
	}
	a, err := parseAway(data)
	if err != nil {
		return Away{}, fmt.Errorf("event: away file %s: %w", path, err)
	}
	return a, nil
}

func parseAway(data []byte) (Away, error) {
	var f awayFile
	if err := unmarshal(data, &f); err != nil {
		return Away{}, err
	}
	if f.Version != awayVersion {
		return Away{}, fmt.Errorf("version %d, want %d", f.Version, awayVersion)
	}
	if f.Namespaces == nil {
		return Away{}, errors.New("no namespaces")
	}
	a := Away{Namespaces: f.Namespaces, Others: f.Others}
	return a, a.validate()
}

func (a Away) validate() error {
	if a.Others != "" {
		if err := oneOf("mode of others", a.Others, NSOut, NSIn, NSMixed); err != nil {
			return err
		}
	}
	for ns, mode := range a.Namespaces {
		if err := errors.Join(checkName("namespace", ns), oneOf("mode", mode, NSOut, NSIn, NSMixed)); err != nil {
			return fmt.Errorf("namespace %.64q: %s", ns, strings.ReplaceAll(err.Error(), "\n", ", "))
		}
	}
	return nil
}

// WriteAway replaces the away file atomically; it survives a power cut. The
// directory is made if it is not there.
func WriteAway(path string, a Away) error {
	if err := a.validate(); err != nil {
		return fmt.Errorf("event: away file: %w", err)
	}
	if a.Namespaces == nil {
		a.Namespaces = map[string]string{}
	}
	data, err := json.Marshal(awayFile{Version: awayVersion, Namespaces: a.Namespaces, Others: a.Others})
	if err != nil {
		return fmt.Errorf("event: away file: %w", err)
	}
	if len(data) > maxAway {
		return fmt.Errorf("event: away file: %d bytes, at most %d are allowed", len(data), maxAway)
	}
	if err := replace(path, data); err != nil {
		return fmt.Errorf("event: away file: %w", err)
	}
	return nil
}
