package rotation_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
)

// An authority that is put in another one's place while no control plane runs replaces it with the same overlap.
func TestReplacedWhileNobodyRan(t *testing.T) {
	for name, tc := range map[string]struct {
		before func(m *memory, r replica, now time.Time) // while one runs
		after  func(m *memory)                           // when it has ended
		old    bool                                      // the one before signs at first
		roots  int                                       // then
	}{
		"another one":    {after: func(m *memory) { m.files = newCA(t) }, old: true, roots: 2},
		"plugged in":     {after: func(m *memory) { m.files, m.plugged = newCA(t), true }, old: true, roots: 2},
		"the same":       {after: func(*memory) {}, old: true, roots: 1},
		"it was deleted": {after: func(m *memory) { m.files = authority.Files{} }, roots: 1}, // a new mesh
		"a second one within an overlap": {
			before: func(m *memory, r replica, now time.Time) { m.files = newCA(t); r.at(now) },
			after:  func(m *memory) { m.files = newCA(t) }, old: true, roots: 3,
		},
		"in the place of one that is rotated": {
			before: func(m *memory, r replica, now time.Time) {
				if err := m.step(t, "prepare", now); err != nil {
					t.Fatal(err)
				}
				r.at(now)
			},
			after: func(m *memory) { m.files = newCA(t) }, old: true, roots: 3,
		},
		"the record was removed": {after: func(m *memory) { m.files, m.record = newCA(t), nil; m.version++ }, roots: 1},
	} {
		t.Run(name, func(t *testing.T) {
			m, now := newMemory(t), epoch.Add(time.Hour)
			r := m.start(t, "one", now)
			old := r.Authority().ID()
			r.sign(now, 30*time.Minute)
			if tc.before != nil {
				tc.before(m, r, now)
			}
			r.End(now)
			tc.after(m)
			now = now.Add(10 * time.Minute)
			two, three := m.start(t, "two", now), m.start(t, "three", now)
			for _, r := range []replica{two, three} {
				if by, roots := r.sign(now, time.Minute); (by == old) != tc.old || roots != tc.roots {
					t.Errorf("at first: signed by the old one %v with %d roots", by == old, roots)
				}
			}
			if tc.roots > 1 {
				now = now.Add(time.Hour + time.Minute)
				two.at(now)
				if by, roots := two.sign(now, time.Minute); by != authority.CertID(m.files.Cert) || roots != tc.roots {
					t.Errorf("half way: %d roots", roots)
				}
			}
			now = now.Add(time.Hour)
			two.at(now)
			two.at(now)
			if by, roots := two.sign(now, time.Minute); name != "the same" && by != authority.CertID(m.files.Cert) || roots != 1 {
				t.Errorf("in the end: %d roots", roots)
			}
			if k, err := m.Read(t.Context()); err != nil || !bytes.Equal(k.Record.Last.Key, m.files.Key) || k.Record.Phase != rotation.Settled {
				t.Errorf("in the end %q, %v", k.Record.Phase, err)
			}
		})
	}
}

// Of several that find a replacement at the same time the one that says what it is says so in the log. Another write in
// between is not taken for that.
func TestWhoFoundTheReplacementSaysSo(t *testing.T) {
	m, now := newMemory(t), epoch.Add(time.Hour)
	r := m.start(t, "one", now)
	old := r.Authority().ID()
	r.sign(now, 30*time.Minute)
	r.End(now)
	m.files = newCA(t)
	found := map[string]int{}
	load := func(name string) *rotation.Keeper {
		var log bytes.Buffer
		k := rotation.New(rotation.Config{Store: m, Replica: name, Overlap: time.Hour, Lifetimes: lifetimes, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err := k.Load(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		found[name] = strings.Count(log.String(), "was replaced while no control plane ran")
		if k.Authority().ID() != old {
			t.Errorf("%s signs with the new one at once", name)
		}
		return k
	}
	m.before = func() { load("first") }
	load("second")
	if found["first"] != 1 || found["second"] != 0 {
		t.Errorf("said it so often: %v", found)
	}

	m.files = newCA(t) // again, and somebody writes something else meanwhile
	old = load("again").Authority().ID()
	if found["again"] != 1 {
		t.Fatalf("said it so often: %v", found)
	}
	m.files = newCA(t)
	m.before = func() { m.version++ }
	if load("third"); found["third"] != 1 {
		t.Errorf("said it so often: %v", found)
	}
}

// Without an overlap no key is kept, and none is that was retired.
func TestNoKeyIsKeptForNothing(t *testing.T) {
	m, now := newMemory(t), epoch.Add(time.Hour)
	k := rotation.New(rotation.Config{Store: m, Replica: "one", Lifetimes: lifetimes})
	if err := k.Load(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if len(m.record) > 0 {
		t.Error("there is a record")
	}
	r := m.start(t, "two", now)
	key := []byte(base64.StdEncoding.EncodeToString(m.files.Key))
	if !bytes.Contains(m.record, key) {
		t.Fatal("it is not written down which authority signs")
	}
	for _, step := range []string{"prepare", "activate", "retire"} {
		for try := 0; ; try++ {
			k.Compare(t.Context(), now)
			k.Save(t.Context(), now)
			r.at(now)
			err := m.step(t, step, now)
			if err == nil {
				break
			}
			if try > 50 {
				t.Fatal(step, err)
			}
			now = now.Add(5 * time.Minute)
		}
	}
	if bytes.Contains(m.record, key) {
		t.Error("the retired key is still in the record")
	}
	r.at(now)
	r.at(now)
	if bytes.Contains(m.record, key) {
		t.Error("the retired key is in the record again")
	}
}

// What cannot be written down is told once, and does not keep anybody from signing.
func TestItCannotBeWrittenDown(t *testing.T) {
	m, now := newMemory(t), epoch.Add(time.Hour)
	m.budget = 1 // the replica itself
	k := rotation.New(rotation.Config{Store: m, Replica: "one", Overlap: time.Hour, Lifetimes: lifetimes})
	if err := k.Load(t.Context(), now); err != nil && !errors.Is(err, errIO) {
		t.Fatal(err)
	}
	if k.Authority() == nil {
		t.Error("nobody signs")
	}
	m.mu.Lock()
	m.budget = -1
	m.mu.Unlock()
	k.Compare(t.Context(), now)
	if len(m.record) == 0 {
		t.Error("it was not made good")
	}
}
