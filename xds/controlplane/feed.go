package controlplane

import (
	"context"
	"fmt"
	"strings"

	"github.com/warren-mesh/warren/xds/file"
	"github.com/warren-mesh/warren/xds/kube"
	"github.com/warren-mesh/warren/xds/translate"
)

// feed is where objects come from: a folder of YAML, or an API server.
type feed interface {
	// Run follows them until ctx ends.
	Run(ctx context.Context) error
	// Synced is closed once they are known.
	Synced() <-chan struct{}
	// Read returns the newest objects, and a channel that is closed when there are newer.
	Read() (translate.Objects, <-chan struct{})
	// Untaken says what has never been read since the start although Synced is closed.
	Untaken() []string
	// Unsynced says what Synced waits for.
	Unsynced() string
	// Stale says why what Read returns may be old.
	Stale() []string
}

// fileFeed is a folder.
type fileFeed struct {
	*file.Feeder
	addresses *fileAddresses // nil: hosts without addresses are given none
}

// Read implements feed.
func (f fileFeed) Read() (translate.Objects, <-chan struct{}) {
	objects, changed := f.Feeder.Read()
	if f.addresses != nil {
		objects = f.addresses.fill(objects)
	}
	return objects, changed
}

// Untaken implements feed.
func (f fileFeed) Untaken() []string { return texts(f.Feeder.Untaken()) }

// Unsynced implements feed.
func (f fileFeed) Unsynced() string { return "the folder of YAML has not been read yet" }

// Stale implements feed. Of files that cannot be read the log tells.
func (f fileFeed) Stale() []string { return nil }

// kubeFeed is an API server.
type kubeFeed struct{ *kube.Feeder }

// Untaken implements feed: nothing is handed out before everything was read, and for
// policies that cannot be read the feeder has something to stand in.
func (f kubeFeed) Untaken() []string { return nil }

// Unsynced implements feed.
func (f kubeFeed) Unsynced() string {
	var waiting []string
	for _, s := range f.Status() {
		switch {
		case s.Synced:
		case s.Err != "":
			waiting = append(waiting, fmt.Sprintf("%s (%s)", s.Kind, s.Err))
		default:
			waiting = append(waiting, s.Kind)
		}
	}
	return "the API server has not been read yet: " + strings.Join(waiting, ", ")
}

// Stale implements feed.
func (f kubeFeed) Stale() []string {
	var out []string
	for _, s := range f.Status() {
		if s.Synced && s.Err != "" {
			out = append(out, fmt.Sprintf("%s are as of %s: %s", s.Kind, s.Heard.UTC().Format("2006-01-02T15:04:05Z"), s.Err))
		}
	}
	return out
}

func texts[T fmt.Stringer](list []T) []string {
	var out []string
	for _, o := range list {
		out = append(out, o.String())
	}
	return out
}
