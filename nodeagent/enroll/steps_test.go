package enroll

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
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
