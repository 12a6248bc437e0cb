package hbone

import (
	"errors"
	"testing"
	"time"

	"github.com/warren-mesh/warren/proxy/hbone/h2"
)

// TestBusy: bulk counts once it has lasted, and not any more once it has paused.
func TestBusy(t *testing.T) {
	var b bulkTime
	now := time.Duration(0)
	step := busyPause / 2
	if b.busy(now) {
		t.Error("busy before anything was seen")
	}
	for ; now < busyAfter; now += step {
		if b.seen(now + 1); b.busy(now + 1) {
			t.Errorf("busy after %s", now)
		}
	}
	if b.seen(now + 1); !b.busy(now+1) || !b.busy(now+1+busyPause) {
		t.Errorf("not busy after %s", now)
	}
	if now += busyPause + 2; b.busy(now) {
		t.Error("busy after a pause")
	}
	if b.seen(now); b.busy(now) {
		t.Error("busy as soon as bulk begins again")
	}
}

// TestRetiredTunnelsAreNotCounted: streams may keep retired tunnels for long; those that
// still take streams are what is bounded.
func TestRetiredTunnelsAreNotCounted(t *testing.T) {
	e := &entry{members: []*member{{gone: true}, {}, {gone: true}, {}}}
	if n := e.open(); n != 2 {
		t.Errorf("%d tunnels of two", n)
	}
}

// TestPick: the oldest tunnel that is not busy; of busy ones that with the fewest
// streams, those that are about to be opened among them.
func TestPick(t *testing.T) {
	quiet := func() *tunnel { return &tunnel{start: time.Now()} }
	busyWith := func(which func(*tunnel) *bulkTime) *tunnel {
		u := &tunnel{start: time.Now().Add(-time.Hour)}
		b := which(u)
		b.since.Store(1)
		b.last.Store(int64(u.now() + time.Minute)) // however slow this test is
		return u
	}
	sends := func() *tunnel { return busyWith(func(u *tunnel) *bulkTime { return &u.sending }) }
	receives := func() *tunnel { return busyWith(func(u *tunnel) *bulkTime { return &u.receiving }) }
	for name, tc := range map[string]struct {
		members []*member
		after   uint64
		want    int // -1: none
		busy    bool
	}{
		"none":               {nil, 0, -1, false},
		"oldest":             {[]*member{{t: quiet(), streams: 5}, {t: quiet()}}, 0, 0, false},
		"not gone":           {[]*member{{t: quiet(), gone: true}, {t: quiet()}}, 0, 1, false},
		"younger":            {[]*member{{t: quiet()}, {t: quiet()}, {t: quiet()}}, 2, 2, false},
		"with a place":       {[]*member{{t: quiet(), streams: 6, pending: 4}, {t: quiet(), streams: 5, pending: 4}}, 0, 1, false},
		"not that sends":     {[]*member{{t: sends()}, {t: quiet(), streams: 5}}, 0, 1, false},
		"not that receives":  {[]*member{{t: receives()}, {t: quiet(), streams: 5}}, 0, 1, false},
		"fewest streams":     {[]*member{{t: sends(), streams: 3}, {t: sends(), streams: 1}, {t: receives(), streams: 2}}, 0, 1, true},
		"and to come":        {[]*member{{t: sends(), streams: 3}, {t: sends(), streams: 1, pending: 4}}, 0, 0, true},
		"oldest of the same": {[]*member{{t: sends(), streams: 3}, {t: sends(), streams: 3}}, 0, 0, true},
		"full and gone":      {[]*member{{t: quiet(), streams: 10}, {t: sends(), gone: true}}, 0, -1, false},
	} {
		e := &entry{members: tc.members}
		for i, m := range e.members {
			m.seq, m.limit = uint64(i+1), 10
		}
		m, busy := e.pick(tc.after)
		got := -1
		for i := range e.members {
			if e.members[i] == m {
				got = i
			}
		}
		if got != tc.want || busy != tc.busy {
			t.Errorf("%s: picked %d, busy %v; want %d, %v", name, got, busy, tc.want, tc.busy)
		}
	}
}

// TestRequestOnATunnelThatEnds: what became of it after it was picked is seen.
func TestRequestOnATunnelThatEnds(t *testing.T) {
	for name, end := range map[string]func(*tunnel){
		"failed":  func(u *tunnel) { u.err = errors.New("failed") },
		"deaf":    func(u *tunnel) { u.deaf = true },
		"closing": func(u *tunnel) { u.closing = true },
		"drains":  func(u *tunnel) { u.drain.started = true },
	} {
		u := &tunnel{onChange: func() {}, writing: true, h2: h2.NewClient(h2.Config{MaxStreams: 10})}
		if _, _, err := u.request(Request{Authority: "a:1"}); err != nil {
			t.Fatalf("before: %v", err)
		}
		end(u)
		if _, _, err := u.request(Request{Authority: "a:1"}); !errors.Is(err, errStale) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
