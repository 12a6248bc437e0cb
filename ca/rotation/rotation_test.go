package rotation_test

import (
	"bytes"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
)

func refused(t *testing.T, err error, want ...string) {
	t.Helper()
	for _, w := range want {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want %q in it", err, w)
		}
	}
}

// A rotation from its first step to its last, on two replicas, with certificates that are valid all the way.
func TestRotation(t *testing.T) {
	m := newMemory(t)
	now := epoch.Add(time.Hour)
	one, two := m.start(t, "one", epoch), m.start(t, "two", epoch)
	both := func() { one.at(now); two.at(now) }
	old := authority.CertID(m.files.Cert)
	one.sign(now, 24*time.Hour)
	two.sign(now, time.Hour)
	both()

	refused(t, m.step(t, "activate", now), "no rotation is under way")
	refused(t, m.step(t, "retire", now), "no rotation is under way")
	if err := m.step(t, "prepare", now); err != nil {
		t.Fatal(err)
	}
	refused(t, m.step(t, "prepare", now), "the next step is `controlplane ca activate`")
	refused(t, m.step(t, "retire", now), "the next step is `controlplane ca activate`")
	refused(t, m.step(t, "activate", now), "wait until 2026-01-01T01:02:00Z", "replica one", "replica two", "2 SVIDs", "without the new root")
	now = now.Add(time.Minute)
	one.at(now)
	if by, roots := one.sign(now, time.Hour); by != old || roots != 2 {
		t.Errorf("prepared: signed by %.8s with %d roots", by, roots)
	}
	err := m.step(t, "activate", now.Add(settle))
	refused(t, err, "replica two")
	if strings.Contains(err.Error(), "replica one") || strings.Contains(err.Error(), "given out for long enough") {
		t.Errorf("%v is about what is there", err)
	}
	both()
	now = epoch.Add(3 * time.Hour) // what two signed has ended
	both()
	refused(t, m.step(t, "activate", now), "1 SVIDs that are valid were given out without the new root", "2026-01-02T01:")
	now = epoch.Add(26 * time.Hour)
	one.sign(now, 10*time.Hour)
	both()
	if err := m.step(t, "activate", now); err != nil {
		t.Fatal(err)
	}
	refused(t, m.step(t, "activate", now), "the next step is `controlplane ca retire`")
	refused(t, m.step(t, "retire", now), "replica one", "replica two", "1 SVIDs that are valid were signed by the old root")
	both()
	next, roots := one.sign(now, 100*time.Hour)
	if next == old || roots != 2 {
		t.Errorf("activated: signed by %.8s with %d roots", next, roots)
	}
	both()
	refused(t, m.step(t, "retire", now.Add(9*time.Hour)), "1 SVIDs that are valid were signed by the old root", "2026-01-02T12:")
	now = now.Add(11 * time.Hour)
	both()
	if err := m.step(t, "retire", now); err != nil {
		t.Fatal(err)
	}
	both()
	both()
	late := m.start(t, "late", now)
	for name, r := range map[string]replica{"one": one, "two": two, "late": late} {
		if by, roots := r.sign(now, time.Hour); by != next || roots != 1 || r.Note() != "" || r.Differs() != "" {
			t.Errorf("%s, in the end: signed by %.8s with %d roots; %q, %q", name, by, roots, r.Note(), r.Differs())
		}
	}
	if authority.CertID(m.files.Cert) != next || !bytes.Equal(m.published, late.Authority().RootsPEM()) || bytes.Contains(m.record, []byte("key")) {
		t.Errorf("what is kept in the end: %s", m.record)
	}
	if err := m.step(t, "prepare", now); err != nil {
		t.Errorf("and again: %v", err)
	}
}

// A crash after any of the writes leaves a CA that goes on, and a rotation that can be brought to its end.
func TestCrashes(t *testing.T) {
	for writes := range 20 {
		m := newMemory(t)
		now := epoch.Add(time.Hour)
		m.budget = writes
		walk := func() (done bool) {
			k := rotation.New(rotation.Config{Store: m, Replica: "r" + now.String(), Overlap: time.Hour, Lifetimes: lifetimes})
			if err := k.Load(t.Context(), now); err != nil && m.budget == 0 {
				return false // who cannot write does not sign
			} else if err != nil {
				t.Fatalf("after %d writes: %v", writes, err)
			}
			r := replica{k, t}
			begun := false
			for _, name := range []string{"prepare", "activate", "retire"} {
				r.at(now)
				err := m.step(t, name, now)
				begun = begun || err == nil || name == "prepare" && m.budget != 0
				now = now.Add(time.Hour)
				r.at(now)
				if by, roots := r.sign(now, time.Minute); roots < 1 || by == "" {
					t.Errorf("after %d writes: nobody signs", writes)
				}
			}
			r.at(now.Add(time.Hour))
			rec, err := rotation.Decode(m.record)
			return err == nil && rec.Phase == rotation.Settled && begun && m.budget != 0
		}
		first := authority.CertID(m.files.Cert)
		if walk() && authority.CertID(m.files.Cert) == first {
			t.Errorf("after %d writes: done, and nothing rotated", writes)
		}
		m.budget = -1
		now = now.Add(10 * time.Hour)
		walk()
		if authority.CertID(m.files.Cert) == first {
			t.Errorf("after a crash at write %d the old root is still installed: %s", writes, m.record)
		}
		k := m.start(t, "end", now)
		if _, roots := k.sign(now, time.Minute); roots != 1 {
			t.Errorf("after a crash at write %d: %d roots in the end", writes, roots)
		}
	}
}

// A replica that vanished counts until what it can have signed has ended; one that said goodbye does not.
func TestVanishedReplicas(t *testing.T) {
	m := newMemory(t)
	now := epoch.Add(time.Hour)
	here, gone, left := m.start(t, "here", now), m.start(t, "gone", now), m.start(t, "left", now)
	gone.sign(now, 3*time.Hour)
	gone.at(now)
	left.at(now)
	left.End(now)
	here.at(now)
	if err := m.step(t, "prepare", now); err != nil {
		t.Fatal(err)
	}
	now = now.Add(settle)
	here.at(now)
	err := m.step(t, "activate", now)
	refused(t, err, "replica gone", "1 SVIDs")
	if strings.Contains(err.Error(), "replica left") {
		t.Errorf("%v", err)
	}
	now = epoch.Add(4*time.Hour + 3*time.Minute) // its certificate has ended; another, signed after it wrote, might not have
	here.at(now)
	refused(t, m.step(t, "activate", now), "replica gone")
	now = now.Add(5*time.Minute + 3*time.Hour/8)
	here.at(now)
	if err := m.step(t, "activate", now); err != nil {
		t.Error(err)
	}
	here.at(now)
	if _, there := m.replicas["gone"]; there || len(m.replicas) != 1 {
		t.Errorf("replicas of before are kept: %v", m.replicas)
	}
}

// An authority that is found, of which nobody wrote down what it signed, has a past: no step is taken that could cut that off.
// One that we made has none, and one whose replicas are known has theirs.
func TestAFoundAuthorityHasAPast(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(m *memory)
		ours   time.Duration // our own longest life, which says nothing of theirs
		past   time.Duration
	}{
		"found":                         {func(m *memory) { clear(m.replicas) }, 0, 90 * 24 * time.Hour},
		"found, and we sign for a day":  {func(m *memory) { clear(m.replicas) }, 24 * time.Hour, 90 * 24 * time.Hour},
		"found, and we sign for a year": {func(m *memory) { clear(m.replicas) }, 365 * 24 * time.Hour, 365 * 24 * time.Hour},
		"made":                          {func(m *memory) { clear(m.replicas); m.files = authority.Files{} }, 0, 0},
		"found with its ledger":         {func(*memory) {}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(t)
			m.longest = tc.ours
			tc.change(m)
			now := epoch.Add(time.Hour)
			r, second := m.start(t, "one", now), m.start(t, "two", now)
			for _, step := range []string{"prepare", "activate"} {
				if err := m.step(t, step, now); tc.past > 0 && step == "activate" {
					refused(t, err, "written down nowhere", "before-the-ledger", now.Add(tc.past+5*time.Minute-settle).Format(time.RFC3339))
				} else if err != nil {
					t.Fatal(step, err)
				}
				r.at(now)
				second.at(now)
				now = now.Add(settle)
				r.at(now)
				second.at(now)
			}
			if tc.past > 0 {
				now = now.Add(tc.past + 5*time.Minute)
				r.at(now)
				second.at(now)
				if err := m.step(t, "activate", now); err != nil {
					t.Error(err)
				}
			}
			r.at(now.Add(2 * time.Minute))
			if _, there := m.replicas["before-the-ledger"]; there {
				t.Error("it is kept for ever")
			}
		})
	}
}

// A ledger that somebody removes beside running replicas had more in it than what those write anew.
func TestALostLedgerIsNoticed(t *testing.T) {
	for name, tc := range map[string]struct {
		lose  func(m *memory)
		quiet time.Duration // for how long one of the replicas has not written
		lost  bool
	}{
		"the whole":                      {func(m *memory) { clear(m.replicas) }, 0, true},
		"one's, of which all is known":   {func(m *memory) { delete(m.replicas, "gone") }, 0, false},
		"nothing":                        {func(*memory) {}, 0, false},
		"one was forgotten by the other": {func(*memory) {}, 2 * time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(t)
			now := epoch.Add(time.Hour)
			one, two, gone := m.start(t, "one", now), m.start(t, "two", now), m.start(t, "gone", now)
			gone.sign(now, 3*time.Hour)
			gone.at(now)
			gone.End(now)
			for end := now.Add(tc.quiet); now.Before(end); now = now.Add(time.Minute) {
				one.at(now)
			}
			tc.lose(m)
			for range 3 {
				now = now.Add(10 * time.Second)
				one.at(now)
				two.at(now)
			}
			if err := m.step(t, "prepare", now); err != nil {
				t.Fatal(err)
			}
			now = now.Add(settle)
			one.at(now)
			two.at(now)
			err := m.step(t, "activate", now)
			if lost := err != nil && strings.Contains(err.Error(), "written down nowhere"); lost != tc.lost {
				t.Errorf("%v", err)
			}
			if tc.lost || err == nil {
				return
			}
			now = now.Add(4 * time.Hour)
			one.at(now)
			two.at(now)
			if err := m.step(t, "activate", now); err != nil {
				t.Error(err)
			}
		})
	}
}

// One that vanishes before it has counted what it signed, for longer than ever before, counts until that has ended: it is not
// given out before that is written down, and if it cannot be, it is not at all.
func TestTheLongestIsWrittenDownFirst(t *testing.T) {
	m := newMemory(t)
	now := epoch.Add(time.Hour)
	here, gone := m.start(t, "here", now), m.start(t, "gone", now)
	gone.sign(now, 3*time.Hour) // and is never heard of again
	for _, step := range []string{"prepare", "activate"} {
		now = now.Add(settle)
		here.at(now)
		if step == "activate" {
			now = now.Add(time.Hour + 10*time.Minute) // what it expected to sign has ended
			here.at(now)
			refused(t, m.step(t, step, now), "replica gone")
			now = epoch.Add(4*time.Hour + 30*time.Minute + 10*time.Minute) // an eighth of three hours more, and silence
			here.at(now)
		}
		if err := m.step(t, step, now); err != nil {
			t.Fatal(step, err)
		}
	}

	now = now.Add(time.Minute)
	here.at(now)
	m.budget = 0
	if leaf, err := here.ask(now, 5*time.Hour); !errors.Is(err, errIO) || len(leaf.Chain) > 0 {
		t.Errorf("a certificate of five hours was given out: %v", err)
	}
	here.sign(now, time.Hour) // as long as is written down
	m.budget = -1
	here.sign(now, 5*time.Hour)
	for n := range 1000 {
		here.sign(now, 5*time.Hour+time.Duration(n)*time.Second)
	}
	if writes := -1 - m.budget; writes > 3 {
		t.Errorf("%d writes for a thousand certificates, each a little longer than the one before", writes)
	}
}

// Nobody in the ledger is not nobody who needs the old root: a step is taken beside a control plane that was heard of.
func TestTheLedgerIsEmpty(t *testing.T) {
	for _, name := range []string{"activate", "retire"} {
		m := newMemory(t)
		now := epoch.Add(time.Hour)
		r := m.start(t, "one", now)
		step := func(name string) {
			t.Helper()
			if err := m.step(t, name, now); err != nil {
				t.Fatal(err)
			}
			r.at(now)
			now = now.Add(settle)
			r.at(now)
		}
		if step("prepare"); name == "retire" {
			step("activate")
		}
		full := maps.Clone(m.replicas)
		clear(m.replicas)
		refused(t, m.step(t, name, now), "no control plane has written")
		m.replicas = full
		refused(t, m.step(t, name, now.Add(10*time.Minute)), "no control plane has written")
		m.start(t, "other", now.Add(-time.Second)).End(now)
		r.End(now)
		refused(t, m.step(t, name, now), "no control plane has written")
		m.start(t, "again", now)
		if err := m.step(t, name, now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The clock of whoever takes a step is held against those of the replicas: a fast one takes for over what is valid.
func TestClocksThatAreWrong(t *testing.T) {
	m := newMemory(t)
	now := epoch.Add(time.Hour)
	r := m.start(t, "one", now)
	r.sign(now, time.Hour)
	refused(t, m.step(t, "prepare", now.Add(-time.Minute)), "clock is at 2026-01-01T00:59:00Z", "replica one")
	for _, name := range []string{"prepare", "activate", "retire"} {
		if name != "prepare" {
			refused(t, m.step(t, name, now.Add(24*time.Hour)), "by the clock of this host (2026-01-0", "no control plane")
			refused(t, m.step(t, name, now.Add(-time.Minute)), "clock is at")
		}
		now = now.Add(2 * time.Hour)
		r.at(now)
		if err := m.step(t, name, now.Add(29*time.Second)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		now = now.Add(10 * time.Minute)
		r.at(now)
		r.sign(now, time.Hour)
	}
}

// An old CA that cannot be read, and has not expired, is not passed over for one that not everybody trusts.
func TestTheOldOneIsDamaged(t *testing.T) {
	for name, begin := range map[string]func(*memory, time.Time){
		"prepared":  func(m *memory, now time.Time) { _ = m.step(t, "prepare", now) },
		"replacing": func(m *memory, _ time.Time) { m.files = newCA(t) },
	} {
		m := newMemory(t)
		now := epoch.Add(time.Hour)
		r := m.start(t, "one", now)
		old := r.Authority().ID()
		begin(m, now)
		r.at(now)
		if name == "prepared" {
			m.files.Key = newCA(t).Key
		} else {
			rec, _ := rotation.Decode(m.record)
			rec.Other.Key = newCA(t).Key
			m.record, _ = rec.Encode()
		}
		now = now.Add(time.Minute)
		r.at(now)
		if by, roots := r.sign(now, time.Minute); by != old || roots != 2 || !strings.Contains(r.Differs(), "is not the key") {
			t.Errorf("%s: signed by %.8s with %d roots, want %.8s; differs: %q", name, by, roots, old, r.Differs())
		}
		late := rotation.New(rotation.Config{Store: m, Replica: "late", Overlap: time.Hour})
		if err := late.Load(t.Context(), now); err == nil {
			t.Errorf("%s: one that starts signs", name)
		}
	}
}

// A root that was put into the list a moment ago is not known to those whose SVIDs are older.
func TestTheListCameJustBefore(t *testing.T) {
	for _, c := range []struct {
		after time.Duration // of the list
		other bool          // replica signed
		old   bool          // signs on
	}{{time.Minute, false, true}, {time.Minute, true, true}, {2 * time.Hour, true, false}} {
		m := newMemory(t)
		now := epoch.Add(time.Hour)
		r, signs := m.start(t, "one", now), m.start(t, "two", now.Add(-time.Minute))
		if !c.other {
			signs = r
		}
		old, _ := signs.sign(now, time.Hour)
		signs.at(now)
		next := newCA(t)
		m.files.Roots = append(bytes.Clone(m.files.Cert), next.Cert...)
		r.at(now)
		now = now.Add(c.after)
		m.files = next
		r.at(now)
		if by, roots := r.sign(now, time.Minute); roots != 2 || (by == old) != c.old {
			t.Errorf("%+v: signed by the old one: %v, with %d roots", c, by == old, roots)
		}
		now = now.Add(61 * time.Minute)
		r.at(now)
		if by, _ := r.sign(now, time.Minute); by == old {
			t.Errorf("%+v: the old one signs for ever", c)
		}
	}
}

// That the CA ends is said once in the log, and on being asked, for as long as it takes to do something.
func TestTheEndIsAnnounced(t *testing.T) {
	m := newMemory(t)
	var log bytes.Buffer
	k := rotation.New(rotation.Config{Store: m, Replica: "one", Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err := k.Load(t.Context(), epoch); err != nil {
		t.Fatal(err)
	}
	end := k.Authority().NotAfter()
	for _, c := range []struct {
		left    time.Duration
		plugged bool
		want    string
	}{
		{31 * 24 * time.Hour, false, ""}, {29 * 24 * time.Hour, false, "controlplane ca prepare"}, {24 * time.Hour, false, "2035-12-30T00:00:00Z"},
		{time.Hour, true, "put another one there"},
	} {
		m.plugged = c.plugged
		k.Compare(t.Context(), end.Add(-c.left))
		if got := k.Ending(end.Add(-c.left)); !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%s before the end: %q, want %q", c.left, got, c.want)
		}
		if n := strings.Count(log.String(), "nobody can prove itself after"); n > 1 || (n == 0) != (c.want == "") {
			t.Errorf("%s before the end: said %d times", c.left, n)
		}
	}
}

// Who signs is in the ledger before, with the longest that it may sign, and does not sign if it cannot be.
func TestWhoSignsIsInTheLedger(t *testing.T) {
	m := newMemory(t)
	k := rotation.New(rotation.Config{Store: m, Replica: "one", Lifetimes: lifetimes})
	m.budget = 0
	if err := k.Load(t.Context(), epoch); !errors.Is(err, errIO) || k.Authority() != nil {
		t.Errorf("signs, and cannot say so: %v", err)
	}
	m.budget = -1
	if err := k.Load(t.Context(), epoch); err != nil {
		t.Fatal(err)
	}
	if r := m.replicas["one"]; r.Step != "settled" || r.Longest != time.Hour || !r.At.Equal(epoch) {
		t.Errorf("after Load: %+v", r)
	}
}

// What is no rotation's business.
func TestPrepareIsRefused(t *testing.T) {
	now := epoch.Add(time.Hour)
	m := newMemory(t)
	m.plugged = true
	refused(t, m.step(t, "prepare", now), "was put into memory", "--ca-overlap")
	m = newMemory(t)
	m.files = authority.Files{}
	refused(t, m.step(t, "prepare", now), "no CA yet")
	m = newMemory(t)
	r := m.start(t, "one", now)
	m.files = newCA(t)
	r.at(now)
	if r.Note() == "" {
		t.Fatal("no replacement is under way")
	}
	refused(t, m.step(t, "prepare", now), "is being replaced, which ends by itself")
	refused(t, m.step(t, "activate", now), "is being replaced")
}

// Two who take a step at the same time: one wins, and there is one new root.
func TestTwoCommandsAtOnce(t *testing.T) {
	m := newMemory(t)
	k, err := m.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a, err := rotation.Prepare(k, nil, epoch)
	if err != nil {
		t.Fatal(err)
	}
	b, err := rotation.Prepare(k, nil, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WriteRecord(t.Context(), k, a); err != nil {
		t.Fatal(err)
	}
	if err := m.WriteRecord(t.Context(), k, b); err == nil {
		t.Error("the second one won, too")
	}
}

// A CA that is put in the place of one that is being rotated replaces what signs, with the usual overlap.
func TestARotationIsGivenUp(t *testing.T) {
	m := newMemory(t)
	now := epoch.Add(time.Hour)
	r := m.start(t, "one", now)
	old := r.Authority().ID()
	if err := m.step(t, "prepare", now); err != nil {
		t.Fatal(err)
	}
	r.at(now)
	m.files = newCA(t)
	r.at(now)
	if by, roots := r.sign(now, time.Minute); by != old || roots != 3 {
		t.Errorf("at first: signed by %.8s with %d roots", by, roots)
	}
	now = now.Add(3 * time.Hour)
	r.at(now)
	if by, roots := r.sign(now, time.Minute); by != authority.CertID(m.files.Cert) || roots != 1 {
		t.Errorf("in the end: %d roots", roots)
	}
}

// A root that others put beside ours is kept; an old root that has expired does not sign.
func TestRootsOfOthers(t *testing.T) {
	m := newMemory(t)
	other := newCA(t)
	m.files.Roots = append(bytes.Clone(m.files.Cert), other.Cert...)
	now := epoch.Add(time.Hour)
	r := m.start(t, "one", now)
	for _, name := range []string{"prepare", "activate", "retire"} {
		if err := m.step(t, name, now); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Hour)
		r.at(now)
	}
	if !authority.InBundle(r.Authority().RootsPEM(), authority.CertID(other.Cert)) || len(r.Authority().RootIDs()) != 2 {
		t.Error("the root that was there is gone")
	}
	if err := m.step(t, "prepare", now); err != nil {
		t.Fatal(err)
	}
	r.at(now)
	late := m.start(t, "two", epoch.Add(10*365*24*time.Hour+2*time.Hour))
	if late.Authority().ID() == authority.CertID(m.files.Cert) {
		t.Error("an expired root signs")
	}
}

func TestStatus(t *testing.T) {
	m := newMemory(t)
	now := epoch.Add(time.Hour)
	r := m.start(t, "one", epoch)
	r.sign(now, time.Hour)
	r.at(now)
	look := func() rotation.Status {
		t.Helper()
		k, err := m.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all, _ := m.Replicas(t.Context())
		s, err := (&rotation.Config{}).Look(k, all, settle, now)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := look()
	if s.Next != "prepare" || s.Live.Count != 1 || s.Wait != "" || len(s.Replicas) != 1 || !s.Replicas[0].AtStep || s.Signing.ID != r.Authority().ID() {
		t.Errorf("settled: %+v", s)
	}
	if err := m.step(t, "prepare", now); err != nil {
		t.Fatal(err)
	}
	s = look()
	if s.Next != "activate" || s.Needed.Count != 1 || !strings.Contains(s.Wait, "1 SVIDs") || s.Replicas[0].AtStep || s.Other.ID == s.Signing.ID || s.Other.ID == "" {
		t.Errorf("prepared: %+v", s)
	}
	now = now.Add(2 * time.Hour)
	r.at(now)
	if s = look(); s.Wait != "" || s.Needed.Count != 0 || !s.Replicas[0].AtStep {
		t.Errorf("ready: %+v", s)
	}
	before := s.Signing.ID
	if err := m.step(t, "activate", now); err != nil {
		t.Fatal(err)
	}
	if s = look(); s.Next != "retire" || s.Signing.ID == before || s.Other.ID != before {
		t.Errorf("activated: %+v", s)
	}
}
