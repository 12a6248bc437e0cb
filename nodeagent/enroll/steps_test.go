package enroll

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// recorder makes steps that write down what happens to them.
type recorder struct{ log []string }

func (r *recorder) step(name string, err error) step {
	return step{
		name: name,
		do:   func(context.Context) error { r.log = append(r.log, name); return err },
		undo: func(ctx context.Context) error { r.log = append(r.log, "undo "+name); return ctx.Err() },
	}
}

func TestRunUndoesInReverse(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name    string
		steps   func(*recorder) []step
		want    []string
		failure string
	}{
		{"all well", func(r *recorder) []step { return []step{r.step("a", nil), r.step("b", nil)} }, []string{"a", "b"}, ""},
		{"the last fails", func(r *recorder) []step { return []step{r.step("a", nil), r.step("b", boom)} },
			[]string{"a", "b", "undo b", "undo a"}, "b: boom"},
		{"the first fails", func(r *recorder) []step { return []step{r.step("a", boom), r.step("b", nil)} }, []string{"a", "undo a"}, "a: boom"},
		{"nothing to undo", func(r *recorder) []step {
			return []step{{name: "a", do: func(context.Context) error { return boom }}}
		}, nil, "a: boom"},
	} {
		r := new(recorder)
		err := run(context.Background(), c.steps(r)...)
		if !slices.Equal(r.log, c.want) {
			t.Errorf("%s: %v, want %v", c.name, r.log, c.want)
		}
		if (err == nil) != (c.failure == "") || err != nil && !strings.Contains(err.Error(), c.failure) {
			t.Errorf("%s: %v, want %q", c.name, err, c.failure)
		}
	}
}

// TestUndoOutlivesTheTime: what a step did is undone also when the reason is
// that the time for it was over.
func TestUndoOutlivesTheTime(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	r := new(recorder)
	late := errors.New("too late")
	err := run(ctx, r.step("a", nil), step{name: "wait", do: func(context.Context) error { cancel(late); return nil }}, r.step("c", nil))
	if !errors.Is(err, late) {
		t.Errorf("got %v", err)
	}
	if want := []string{"a", "undo c", "undo a"}; !slices.Equal(r.log, want) {
		t.Errorf("%v, want %v", r.log, want)
	}
}

func TestNext(t *testing.T) {
	phases := []Phase{PhaseAbsent, PhaseLeft, PhaseAdding, PhaseEnrolling, PhaseEnrolled, PhaseLeaving}
	for _, c := range []struct {
		want   want
		right  bool
		expect []action // by phase
	}{
		{wantUnknown, true, []action{actNone, actNone, actNone, actNone, actNone, actNone}},
		{wantOut, true, []action{actNone, actNone, actNone, actLeave, actLeave, actLeave}},
		{wantIn, true, []action{actNone, actEnroll, actNone, actEnroll, actNone, actEnroll}},
		{wantIn, false, []action{actNone, actEnroll, actNone, actEnroll, actAdjust, actEnroll}},
	} {
		for i, p := range phases {
			if got := next(p, c.want, c.right); got != c.expect[i] {
				t.Errorf("phase %q, want %d, rules right %t: %s, want %s", p, c.want, c.right, got, c.expect[i])
			}
		}
	}
}

// TestDraining: what counts is what is carried once others have heard that the pod leaves.
func TestDraining(t *testing.T) {
	began := time.Now()
	at := func(d time.Duration) time.Time { return began.Add(d) }
	d := draining{times: Times{Drain: -1, Linger: 2 * time.Second, Blind: 5 * time.Second}, began: began}
	for _, c := range []struct {
		at            time.Duration
		marked        string
		n             int
		err           error
		over, counted bool
	}{
		{0, "enabled", 0, nil, false, false},
		{time.Second, "", 0, nil, false, false},
		{2 * time.Second, "", 0, nil, false, false},
		{3 * time.Second, "", 1, nil, false, true},
		{4 * time.Second, "", 0, errors.New("busy"), false, true},
		{9 * time.Second, "", 0, errors.New("busy"), true, true},
		{9 * time.Second, "", 0, nil, true, true},
	} {
		d.hear(at(c.at), Pod{Marked: c.marked})
		if over := d.over(at(c.at), c.n, c.err); over != c.over || d.heard.IsZero() == c.counted {
			t.Errorf("after %s: over %t, heard %v", c.at, over, d.heard)
		}
	}
	if !d.heard.Equal(at(3 * time.Second)) {
		t.Errorf("heard %s after it began", d.heard.Sub(began))
	}
	left := draining{times: Times{Drain: retireGrace}, began: began}
	left.hear(at(time.Millisecond), Pod{Finished: true})
	if left.heard.Before(began) || left.over(at(time.Millisecond), 1, nil) || !left.over(at(retireGrace), 1, nil) {
		t.Errorf("for good: heard %s after it began", left.heard.Sub(began))
	}
}
