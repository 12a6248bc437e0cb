package nodeagent

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestClaimState(t *testing.T) {
	for name, c := range map[string]struct {
		before     string // in the file; empty: there is none
		node, boot string
		refused    bool
	}{
		"nobody's":             {"", "a", "1", false},
		"our own":              {`{"node":"a","bootID":"1"}`, "a", "1", false},
		"our own, of before":   {`{"node":"a","bootID":"1"}`, "a", "2", false},
		"another's":            {`{"node":"b","bootID":"1"}`, "a", "1", true},
		"another's, of before": {`{"node":"b","bootID":"1"}`, "a", "2", false},
		"hidden boot":          {`{"node":"b"}`, "a", "", true},
		"one hidden boot":      {`{"node":"b","bootID":"1"}`, "a", "", true},
		"empty":                {"\x00\x00", "a", "1", false},
		"says nothing":         {`{}`, "a", "1", false},
		"large":                {strings.Repeat(" ", maxOwner+1), "a", "1", true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, ownerFile)
			if c.before != "" {
				if err := os.WriteFile(path, []byte(c.before), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := claimState(dir, c.node, c.boot)
			if (err != nil) != c.refused {
				t.Fatalf("err = %v, want one: %v", err, c.refused)
			}
			if err != nil {
				if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "remove") {
					t.Errorf("%v says not what to do", err)
				}
				return
			}
			if got, err := readOwner(path); err != nil || got != (owner{c.node, c.boot}) {
				t.Errorf("the file says %+v, %v", got, err)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// Of nodes that come at the same time one has the folder.
func TestClaimStateRace(t *testing.T) {
	for range 50 {
		dir := t.TempDir()
		var claimed atomic.Int32
		var all sync.WaitGroup
		for _, node := range []string{"a", "b", "c", "d"} {
			all.Go(func() {
				if claimState(dir, node, "boot") == nil {
					claimed.Add(1)
				}
			})
		}
		all.Wait()
		if claimed.Load() != 1 {
			t.Fatalf("%d nodes have it", claimed.Load())
		}
	}
}
