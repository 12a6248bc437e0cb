package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Type is our plugin's type in a list, and its binary's name.
const Type = "warren-cni"

// Versions are those of the CNI specification that the plugin speaks. In a list
// of another version every pod of the node would fail.
func Versions() []string { return []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// Entry is our plugin's configuration. What is empty is left out and has the
// plugin's default.
type Entry struct {
	RunDir       string // of the agent's socket
	StateDir     string // of the away file and the tombstones
	LogFile      string
	LogLevel     string // debug, info, warn, error
	WithoutAgent string // refuse, allow
	Namespace    string // the mesh's own
}

// JSON returns the entry as it stands in the list, in one line. It has no name
// and no version: those are the list's.
func (e Entry) JSON() ([]byte, error) {
	return marshal(struct {
		Type         string `json:"type"`
		RunDir       string `json:"runDir,omitempty"`
		StateDir     string `json:"stateDir,omitempty"`
		LogFile      string `json:"logFile,omitempty"`
		LogLevel     string `json:"logLevel,omitempty"`
		WithoutAgent string `json:"withoutAgent,omitempty"`
		Namespace    string `json:"namespace,omitempty"`
	}{Type, e.RunDir, e.StateDir, e.LogFile, e.LogLevel, e.WithoutAgent, e.Namespace})
}

// Validate says what the plugin would refuse: it would fail for every pod. All
// mistakes are told at once.
func (e Entry) Validate() error {
	var errs []error
	bad := func(key, value, want string) {
		errs = append(errs, fmt.Errorf("conflist: our entry's %q: %.100q: want %s", key, value, want))
	}
	for _, p := range []struct{ key, value string }{{"runDir", e.RunDir}, {"stateDir", e.StateDir}, {"logFile", e.LogFile}} {
		if v := p.value; v != "" && (!path.IsAbs(v) || path.Clean(v) != strings.TrimRight(v, "/") || len(v) > 4000 || strings.ContainsFunc(v, isControl)) {
			bad(p.key, v, "an absolute path without . and ..")
		}
	}
	if len(e.RunDir) > maxRunDir {
		bad("runDir", e.RunDir, "a path short enough for a Unix socket in it")
	}
	if e.LogLevel != "" && !slices.Contains([]string{"debug", "info", "warn", "error"}, e.LogLevel) {
		bad("logLevel", e.LogLevel, "debug, info, warn or error")
	}
	if e.WithoutAgent != "" && !slices.Contains([]string{"refuse", "allow"}, e.WithoutAgent) {
		bad("withoutAgent", e.WithoutAgent, "refuse or allow")
	}
	if len(e.Namespace) > 63 || strings.Trim(e.Namespace, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		bad("namespace", e.Namespace, "the name of a Kubernetes namespace")
	}
	return errors.Join(errs...)
}

// maxRunDir leaves room for the socket's name in the 107 bytes of its path.
const maxRunDir = 107 - len("/cni.sock")

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// marshal leaves <, > and & as they are, as a person would.
func marshal(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("conflist: %w", err)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}
