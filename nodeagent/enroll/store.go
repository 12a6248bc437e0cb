package enroll

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/netns"
)

const (
	recordVersion = 1
	maxRecord     = 64 << 10 // bytes of one file
)

// record is an attachment as it is on disk.
type record struct {
	Version        int             `json:"version"`
	Key            event.Key       `json:"key"`
	Network        string          `json:"network,omitempty"`
	Source         Source          `json:"source"`
	PodUID         string          `json:"podUID"`
	PodNamespace   string          `json:"podNamespace"`
	PodName        string          `json:"podName"`
	ServiceAccount string          `json:"serviceAccount,omitempty"`
	IPs            []netip.Prefix  `json:"ips,omitempty"`
	Netns          string          `json:"netns"` // path on the host
	NetnsID        netns.ID        `json:"netnsID"`
	BootID         string          `json:"bootID,omitempty"` // namespaces do not outlive it
	Phase          Phase           `json:"phase"`
	Redirect       *event.Redirect `json:"redirect,omitempty"` // nil: nothing is programmed
	Reason         string          `json:"reason,omitempty"`
	Added          time.Time       `json:"added"`
	Before         []Conn          `json:"before,omitempty"` // some of the connections that are outside the mesh
	BeforeMore     int             `json:"beforeMore,omitempty"`
	BeforeUnseen   bool            `json:"beforeUnseen,omitempty"` // the kernel has to be asked for them
	Theirs         string          `json:"theirs,omitempty"`       // see sandbox
}

// store is the folder of records. It has no lock: one goroutine at a time has to
// do with one attachment.
type store struct{ dir string }

// openStore makes the folder and removes what an interrupted write left.
func openStore(dir string) (store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return store{}, fmt.Errorf("enroll: attachments: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*.tmp"))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	if err != nil {
		return store{}, fmt.Errorf("enroll: attachments: %w", err)
	}
	return store{dir}, nil
}

// name is the file of a key. Both parts come from the runtime; where they do not
// make a good name, their hash does.
func (s store) name(k event.Key) string {
	name := k.ContainerID + "-" + k.IfName
	odd := func(r rune) bool { return r <= ' ' || r == '/' || r > '~' }
	if k.ContainerID == "" || k.ContainerID[0] == '.' || len(name) > 200 || strings.ContainsFunc(name, odd) {
		sum := sha256.Sum256([]byte(k.ContainerID + "/" + k.IfName))
		name = hex.EncodeToString(sum[:])
	}
	return name + ".json"
}

// put writes a record so that a reader finds the old one or the new one. It is
// not synced to the disk: after a crash of the machine there are no namespaces
// that it could speak of.
func (s store) put(r record) error {
	r.Version = recordVersion
	name := s.name(r.Key)
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("enroll: attachment %s: %w", name, err)
	}
	tmp := filepath.Join(s.dir, "."+name+".tmp")
	err = os.WriteFile(tmp, append(b, '\n'), 0o600)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(s.dir, name))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("enroll: write attachment: %w", err), discard(tmp))
	}
	return nil
}

// remove deletes the record of a key; none is success.
func (s store) remove(k event.Key) error {
	return discard(filepath.Join(s.dir, s.name(k)))
}

// errNewer is for a record of a newer agent, which may come back.
var errNewer = errors.New("it is of a newer agent")

// all reads every record. A damaged one, which no rename of ours leaves, is
// removed and reported; a newer agent's is only reported.
func (s store) all() (records []record, damaged []error, err error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("enroll: attachments: %w", err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".json") {
			continue
		}
		path := filepath.Join(s.dir, f.Name())
		r, err := s.read(path)
		if err != nil {
			err = fmt.Errorf("enroll: attachment %s: %w", path, err)
			if !errors.Is(err, errNewer) {
				err = errors.Join(err, discard(path))
			}
			damaged = append(damaged, err)
			continue
		}
		records = append(records, r)
	}
	return records, damaged, nil
}

func (s store) read(path string) (r record, err error) {
	f, err := os.Open(path)
	if err != nil {
		return r, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return r, err
	}
	if len(b) > maxRecord {
		return r, fmt.Errorf("more than %d bytes", maxRecord)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, err
	}
	switch {
	case r.Version > recordVersion:
		return r, fmt.Errorf("%w: version %d, this one knows %d", errNewer, r.Version, recordVersion)
	case s.name(r.Key) != filepath.Base(path):
		return r, fmt.Errorf("it is about %s", s.name(r.Key))
	case r.Version != recordVersion:
		return r, fmt.Errorf("version %d, this agent knows %d", r.Version, recordVersion)
	case r.PodUID == "" || r.NetnsID.IsZero() || r.Phase == PhaseAbsent:
		return r, errors.New("no pod or no namespace in it")
	}
	return r, nil
}

func discard(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("enroll: %w", err)
	}
	return nil
}
