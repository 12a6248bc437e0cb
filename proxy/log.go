package proxy

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// scopeKey is the attribute by which a logger says which part it speaks for.
const scopeKey = "scope"

// logs are the proxy's own log and its access log: one writer, one format, one
// filter.
type logs struct {
	*filter
	sink   *logSink
	encode encoder
}

func newLogs(cfg LogConfig, w io.Writer) (*logs, error) {
	f, err := newFilter(cfg.Filter)
	if err != nil {
		return nil, err
	}
	l := &logs{filter: f, encode: appendText}
	if cfg.JSON {
		l.encode = appendJSON
	}
	l.sink = newLogSink(w, l.encode)
	return l, nil
}

// scope is the logger of one part.
func (l *logs) scope(name string) *slog.Logger { return slog.New(&logHandler{logs: l, scope: name}) }

// write writes one line.
func (l *logs) write(t time.Time, level slog.Level, scope, msg string, fixed, attrs []slog.Attr) {
	b := lineBuffers.Get().(*[]byte)
	*b = l.encode((*b)[:0], t, level, scope, msg, fixed, attrs)
	l.sink.line(*b)
	if cap(*b) <= maxLineBuffer {
		lineBuffers.Put(b)
	}
}

// maxLineBuffer is the largest buffer that is kept for another line.
const maxLineBuffer = 4 << 10

var lineBuffers = sync.Pool{New: func() any { return new(make([]byte, 0, 1<<10)) }}

// logHandler is a slog.Handler over logs.
type logHandler struct {
	logs  *logs
	scope string
	group string // prefix of keys, with its dot
	attrs []slog.Attr
}

func (h *logHandler) Enabled(_ context.Context, l slog.Level) bool {
	return h.logs.enabled(h.scope, l)
}

func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	attrs := make([]slog.Attr, 0, r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		attrs = h.flat(attrs, h.group, a)
		return true
	})
	h.logs.write(r.Time, r.Level, h.scope, r.Message, h.attrs, attrs)
	return nil
}

// flat adds an attribute under its full, dotted key.
func (h *logHandler) flat(list []slog.Attr, prefix string, a slog.Attr) []slog.Attr {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, g := range v.Group() {
			list = h.flat(list, prefix, g)
		}
		return list
	}
	if a.Key == "" {
		return list
	}
	return append(list, slog.Attr{Key: prefix + a.Key, Value: v})
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.attrs = slices.Clone(h.attrs)
	for _, a := range attrs {
		if a.Key == scopeKey && h.group == "" {
			n.scope = a.Value.String()
			continue
		}
		n.attrs = h.flat(n.attrs, h.group, a)
	}
	return &n
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	n := *h
	n.group += name + "."
	return &n
}
