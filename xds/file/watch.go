package file

import (
	"log/slog"

	"github.com/warren-mesh/warren/internal/dirwatch"
)

// watch says when the folder is worth a look.
type watch struct {
	*dirwatch.Watch
	dir  string
	log  *slog.Logger
	told bool // the log knows that there is none
}

func newWatch(dir string, log *slog.Logger) *watch {
	return &watch{Watch: dirwatch.New(), dir: dir, log: log}
}

// ensure watches what is at the path now, and reports whether it does. Of a folder that
// is not there the scan tells.
func (w *watch) ensure() bool {
	n, err := w.Ensure(w.dir)
	if err != nil && !w.told {
		w.log.Warn("cannot watch the folder: looking at it every second instead", "folder", w.dir, "err", err)
	}
	w.told = err != nil
	return n > 0
}
