package controlplane

import (
	"context"
	"log/slog"
)

// audit is log at every level: who was given which certificate is not a matter of how
// much else is wanted in the log.
func audit(log *slog.Logger) *slog.Logger { return slog.New(everyLevel{log.Handler()}) }

type everyLevel struct{ slog.Handler }

// Enabled implements slog.Handler.
func (h everyLevel) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs implements slog.Handler.
func (h everyLevel) WithAttrs(attrs []slog.Attr) slog.Handler {
	return everyLevel{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h everyLevel) WithGroup(name string) slog.Handler { return everyLevel{h.Handler.WithGroup(name)} }
