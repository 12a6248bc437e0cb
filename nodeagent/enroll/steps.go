package enroll

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// undoTimeout bounds the undoing of one list of steps. It is not part of the
// time for the steps themselves, which may be over.
const undoTimeout = 5 * time.Second

// step is one thing to do and how to undo it. undo is also called for a step
// that failed, since it may have been done in part: it must bear to find nothing.
type step struct {
	name string
	do   func(context.Context) error
	undo func(context.Context) error // nil: nothing to undo
}

// run does the steps in turn. When one fails, that one and those before it are
// undone in reverse, whether or not ctx is over; the error then tells of both.
func run(ctx context.Context, steps ...step) error {
	for i, s := range steps {
		err := ctx.Err()
		if err == nil {
			err = s.do(ctx)
		} else {
			err = context.Cause(ctx)
		}
		if err == nil {
			continue
		}
		err = fmt.Errorf("%s: %w", s.name, err)
		return errors.Join(err, undo(ctx, steps[:i+1]))
	}
	return nil
}

func undo(ctx context.Context, done []step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	for i := len(done) - 1; i >= 0; i-- {
		if done[i].undo == nil {
			continue
		}
		if err := done[i].undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", done[i].name, err))
		}
	}
	return errors.Join(errs...)
}
