package install

import (
	"log/slog"

	"github.com/warren-mesh/warren/internal/dirwatch"
)

// watch says when folders are worth a look. Where it cannot watch, or the kernel loses
// what happened, there is the poll.
type watch struct {
	*dirwatch.Watch
	log  *slog.Logger
	told bool
}

func newWatch(log *slog.Logger) *watch { return &watch{Watch: dirwatch.New(), log: log} }

// ensure watches what is at the paths now. It may add events that came of it.
func (w *watch) ensure(paths ...string) {
	_, err := w.Ensure(paths...)
	if err != nil && !w.told {
		w.log.Warn("cannot watch the folders of the CNI: they are looked at from time to time instead", "err", err)
	}
	w.told = err != nil
}
