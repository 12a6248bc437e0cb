package install

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/warren-mesh/warren/internal/hostdir"
)

// Installer keeps the plugin on the host.
type Installer struct {
	cfg    Config
	log    *slog.Logger
	binary binary
	tmp    string
	step   func(op, name string) error // for tests: may make a step fail

	mu       sync.Mutex          // one round at a time
	left     bool                // Uninstall was called: never again
	verified hostdir.Info        // of the binary on the host, when it was last compared
	broken   map[string]sighting // files that cannot be read, and since when
	kept     map[string]time.Time
	lost     sighting // the primary's file that our copy is of and that is gone
	lostName string
	changes  int // on the host
	repairs  int
	fine     bool        // all was well once
	recent   []time.Time // of the last repairs of a configuration

	stateMu sync.Mutex
	state   State
}

// New checks the config, and that this machine can run the plugin. It does not
// look at the host yet.
func New(cfg Config) (*Installer, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	cfg.OwnConfName = cmp.Or(cfg.OwnConfName, OwnConfName)
	cfg.Times = cfg.Times.withDefaults()
	b, err := openBinary(cfg.PluginBinary)
	if err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Installer{
		cfg: cfg, log: log, binary: b, tmp: newTmp(),
		state: State{Phase: Starting, Since: time.Now(), Detail: "nothing was looked at yet"},
	}, nil
}

// Run installs, watches and repairs until ctx ends; it returns nil then, and
// leaves everything as it is. What goes wrong is in State, and tried again.
func (i *Installer) Run(ctx context.Context) error {
	w := newWatch(i.log)
	defer w.Close()
	for {
		again, pause := i.round(w)
		if pause > 0 && !sleep(ctx, pause) {
			return nil
		}
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-w.Events():
		case <-timer.C:
		}
		timer.Stop()
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// A file that is put back more often than this is somebody else's too.
const (
	contestedTimes = 5
	contestedIn    = 30 * time.Second
	contestedPause = time.Second
)

func (i *Installer) contested() bool {
	for len(i.recent) > 0 && time.Since(i.recent[0]) > contestedIn {
		i.recent = i.recent[1:]
	}
	return len(i.recent) >= contestedTimes
}

// changed counts what was done to the host.
func (i *Installer) changed(conf bool) {
	i.changes++
	if !i.fine {
		return
	}
	i.repairs++
	if conf {
		i.recent = append(i.recent, time.Now())
	}
}

func (i *Installer) open(path string) (folder, error) {
	d, err := hostdir.Open(i.cfg.HostRoot, path)
	return folder{d, i.tmp, i.step}, err
}
