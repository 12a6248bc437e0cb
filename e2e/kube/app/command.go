package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

const usage = `usage:
  meshapp serve                    all servers
  meshapp ctl COMMAND JSON         call, load, look or stop at this pod's server
  meshapp once URL [SECONDS]       ask until there is an answer, at most so long (30)
  meshapp sleep SECONDS
  meshapp file ls|cat|write|mv|rm PATH [TEXT or PATH]`

// Main runs one command line.
func Main(ctx context.Context, args []string, out io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return Serve(ctx)
	case len(args) == 3 && args[0] == "ctl":
		return Control(ctx, args[1], args[2], out)
	case len(args) >= 2 && args[0] == "once":
		return once(ctx, args[1:], out)
	case len(args) == 2 && args[0] == "sleep":
		d, err := seconds(args[1])
		pause(ctx, d)
		return err
	case len(args) > 1 && args[0] == "file":
		return files(args[1:], out)
	}
	return errors.New(usage)
}

func seconds(s string) (time.Duration, error) {
	n, err := strconv.Atoi(s)
	return time.Duration(n) * time.Second, err
}

// once is for Jobs and hooks: one answer is success.
func once(ctx context.Context, args []string, out io.Writer) error {
	within := 30 * time.Second
	if len(args) > 1 {
		var err error
		if within, err = seconds(args[1]); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for began, n := time.Now(), 1; ; n++ {
		r := Call{URL: args[0]}.Do(ctx)
		if r.OK {
			_, err := fmt.Fprintf(out, "answer %d after %s: %+v\n", n, time.Since(began).Round(time.Millisecond), r.Answer)
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: no answer in %d calls: %s", args[0], n, r.Err)
		}
		pause(ctx, 100*time.Millisecond)
	}
}
