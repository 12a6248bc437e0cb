package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warren-mesh/warren/cni/event"
)

// maxStdin bounds the configuration: thousands of attachments in a GC, which
// are given twice.
const maxStdin = 8 << 20

// What to do with a pod about which nothing is known while the agent is away.
const (
	Refuse = "refuse"
	Allow  = "allow"
)

// Config is the plugin's entry in the conflist, and what the runtime adds to it
// for a call.
type Config struct {
	CNIVersion string
	Name       string // of the network
	RunDir     string // of the agent's socket
	StateDir   string // of the away file and tombstones
	LogFile    string // empty: stderr only
	LogLevel   slog.Level
	// WithoutAgent decides while the agent is away and its file does not know
	// the pod's namespace: Refuse or Allow.
	WithoutAgent string
	// Namespace is the mesh's own: its pods are admitted without asking, so
	// that agent and proxy can always start.
	Namespace string

	PrevResult json.RawMessage // as received; nil: none
	// ValidAttachments is GC's list; nil: none was given.
	ValidAttachments []event.Key
}

// defaults are those of the keys that are left out.
func defaults() Config {
	return Config{
		RunDir: "/run/warren", StateDir: "/var/lib/warren", LogFile: "/run/warren/warren-cni.log",
		WithoutAgent: Refuse, Namespace: "warren-system",
	}
}

// parseConfig reads stdin. The error tells all mistakes at once; the Config has
// what is not mistaken, and defaults for the rest, for DEL to go on with. Keys
// that are not ours are others' business.
func parseConfig(stdin []byte) (Config, error) {
	c := defaults()
	if len(stdin) > maxStdin {
		return c, fmt.Errorf("the configuration has more than %d bytes", maxStdin)
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &keys); err != nil {
		return c, fmt.Errorf("the configuration is not a JSON object: %w", err)
	}
	r := &reader{keys: keys}
	r.text("cniVersion", &c.CNIVersion, func(string) string { return "" })
	r.text("name", &c.Name, func(string) string { return "" })
	r.text("runDir", &c.RunDir, badDir)
	if _, given := keys["runDir"]; given {
		c.LogFile = filepath.Join(c.RunDir, "warren-cni.log")
	}
	if path := filepath.Join(c.RunDir, event.SocketName); len(path) > 107 {
		r.fail("runDir", "the socket's path %s is longer than the 107 bytes that a Unix socket's may have", path)
	}
	r.text("stateDir", &c.StateDir, badDir)
	r.text("logFile", &c.LogFile, func(s string) string {
		if s == "" {
			return ""
		}
		return badDir(s)
	})
	level := "info"
	r.text("logLevel", &level, oneOf("debug", "info", "warn", "error"))
	_ = c.LogLevel.UnmarshalText([]byte(level)) // one of the four
	r.text("withoutAgent", &c.WithoutAgent, oneOf(Refuse, Allow))
	r.text("namespace", &c.Namespace, func(s string) string {
		if s == "" || len(s) > 63 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return "want the name of a Kubernetes namespace"
		}
		return ""
	})
	if prev := keys["prevResult"]; !isNull(prev) {
		c.PrevResult = prev
	}
	c.ValidAttachments = r.attachments()
	return c, errors.Join(r.errs...)
}

// reader takes values out of an object and collects what is wrong with them.
type reader struct {
	keys map[string]json.RawMessage
	errs []error
}

func (r *reader) fail(key, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%q: %s", key, fmt.Sprintf(format, args...)))
}

// text sets to to a string that bad has nothing against.
func (r *reader) text(key string, to *string, bad func(string) string) {
	raw, ok := r.keys[key]
	if !ok {
		return
	}
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		r.fail(key, "want a string, not %.40s", raw)
		return
	}
	if why := bad(*s); why != "" {
		r.fail(key, "%.100q: %s", *s, why)
		return
	}
	*to = *s
}

// attachments reads GC's list under the name that the specification gives it
// now, or the one of its first text.
func (r *reader) attachments() []event.Key {
	for _, key := range []string{"cni.dev/valid-attachments", "cni.dev/attachments"} {
		raw, ok := r.keys[key]
		if !ok || isNull(raw) {
			continue
		}
		var list []struct {
			ContainerID string `json:"containerID"`
			IfName      string `json:"ifname"`
		}
		if err := json.Unmarshal(raw, &list); err != nil {
			r.fail(key, "want a list of attachments: %v", err)
			return nil
		}
		valid := make([]event.Key, len(list))
		for i, a := range list {
			valid[i] = event.Key{ContainerID: a.ContainerID, IfName: a.IfName}
			if err := valid[i].Validate(); err != nil {
				r.fail(key, "entry %d: bad %s", i, strings.ReplaceAll(err.Error(), "\n", ", "))
			}
		}
		return valid
	}
	return nil
}

func isNull(raw json.RawMessage) bool {
	return len(raw) == 0 || bytes.Equal(bytes.TrimSpace(raw), []byte("null"))
}

func badDir(s string) string {
	if !filepath.IsAbs(s) || filepath.Clean(s) != strings.TrimRight(s, "/") || len(s) > 4000 || strings.ContainsFunc(s, isControl) {
		return "want an absolute path without . and .."
	}
	return ""
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

func oneOf(allowed ...string) func(string) string {
	return func(s string) string {
		if slices.Contains(allowed, s) {
			return ""
		}
		return "want one of " + strings.Join(allowed, ", ")
	}
}
