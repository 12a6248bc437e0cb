package proxy

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
)

// LogConfig says what is logged and how.
type LogConfig struct {
	Filter string // "info", or "info,access=debug": a level, and levels by scope
	JSON   bool   // one JSON object a line instead of text
}

const (
	levelTrace = slog.LevelDebug - 4
	levelOff   = slog.Level(1 << 20)
)

// levels is a parsed filter. It is immutable.
type levels struct {
	all    slog.Level
	scopes map[string]slog.Level
}

// newLevels parses a filter. Of two entries about one scope the later holds.
func newLevels(spec string) (*levels, error) { return (&levels{}).with(spec) }

// with returns the levels changed by spec.
func (l *levels) with(spec string) (*levels, error) {
	out := &levels{all: l.all, scopes: maps.Clone(l.scopes)}
	if out.scopes == nil {
		out.scopes = make(map[string]slog.Level)
	}
	if len(spec) > 4096 {
		return nil, fmt.Errorf("a filter of %d bytes", len(spec))
	}
	for part := range strings.SplitSeq(spec, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		scope, name, scoped := strings.Cut(part, "=")
		if !scoped {
			name = part
		}
		level, ok := parseLevel(name)
		switch {
		case !ok:
			return nil, fmt.Errorf("%q is not one of error, warn, info, debug, trace and off", name)
		case scoped:
			out.scopes[strings.TrimPrefix(scope, "ztunnel::")] = level
		default:
			out.all = level
		}
	}
	return out, nil
}

func parseLevel(name string) (slog.Level, bool) {
	switch strings.ToLower(strings.TrimSpace(name)) {
	case "error":
		return slog.LevelError, true
	case "warn", "warning":
		return slog.LevelWarn, true
	case "info":
		return slog.LevelInfo, true
	case "debug":
		return slog.LevelDebug, true
	case "trace":
		return levelTrace, true
	case "off":
		return levelOff, true
	}
	return 0, false
}

// levelName is how a line spells its level.
func levelName(l slog.Level) string {
	switch {
	case l >= levelOff:
		return "off"
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	case l >= slog.LevelDebug:
		return "debug"
	}
	return "trace"
}

// of is the lowest level that is logged of a scope.
func (l *levels) of(scope string) slog.Level {
	if level, ok := l.scopes[scope]; ok {
		return level
	}
	return l.all
}

// String is the filter, with the scopes in order.
func (l *levels) String() string {
	parts := []string{levelName(l.all)}
	for _, scope := range slices.Sorted(maps.Keys(l.scopes)) {
		parts = append(parts, scope+"="+levelName(l.scopes[scope]))
	}
	return strings.Join(parts, ",")
}

// filter is what is logged now; it can be changed while the proxy runs.
type filter struct {
	start *levels
	now   atomic.Pointer[levels]
}

func newFilter(spec string) (*filter, error) {
	l, err := newLevels(spec)
	if err != nil {
		return nil, err
	}
	f := &filter{start: l}
	f.now.Store(l)
	return f, nil
}

func (f *filter) enabled(scope string, l slog.Level) bool { return l >= f.now.Load().of(scope) }

// Level implements admin.Logging.
func (f *filter) Level() string { return f.now.Load().String() }

// SetLevel implements admin.Logging: it adds spec to what holds now, or with
// reset to what held at start.
func (f *filter) SetLevel(spec string, reset bool) error {
	base := f.now.Load()
	if reset {
		base = f.start
	}
	l, err := base.with(spec)
	if err == nil {
		f.now.Store(l)
	}
	return err
}
