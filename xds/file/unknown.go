package file

import "log/slog"

// maxUnknownKinds bounds what is remembered, and logged, of kinds nobody reads.
const maxUnknownKinds = 100

// unknownKinds reports every kind that nobody reads once.
type unknownKinds struct {
	log  *slog.Logger
	seen map[string]bool
}

func newUnknownKinds(log *slog.Logger) *unknownKinds {
	return &unknownKinds{log: log, seen: make(map[string]bool)}
}

func (u *unknownKinds) report(file string, kinds []string) {
	for _, kind := range kinds {
		if !u.seen[kind] && len(u.seen) < maxUnknownKinds {
			u.seen[kind] = true
			u.log.Info("objects of this kind are ignored", "kind", kind, "file", file)
		}
	}
}
