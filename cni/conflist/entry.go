package conflist

import (
	"bytes"
	"encoding/json"
	"fmt"
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
