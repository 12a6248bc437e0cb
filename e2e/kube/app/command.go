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
  meshapp file ls|cat|write|mv|rm PATH [TEXT or PATH]
  meshapp feed TEXT PROGRAM ...    run a program with a text as its input
  meshapp lend PATH                put a copy of this program there
  meshapp istio-routes             make the routes of Istio's agent in this namespace
  meshapp istio-tables             make the nftables tables of Istio's agent likewise
  meshapp tables                   name the nftables tables
  meshapp front ADDR FOLDER        stand in front of the API server, with a certificate
  meshapp front-mode ADDR MODE     set what that one does: open, gone, busy or slow`

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
	return more(ctx, args, out)
}

// more are the commands of the tests that play somebody else.
func more(ctx context.Context, args []string, out io.Writer) error {
	switch {
	case len(args) > 2 && args[0] == "feed":
		return feed(ctx, args[1], args[2:], out)
	case len(args) == 2 && args[0] == "lend":
		return lend(args[1])
	case len(args) == 1 && args[0] == "istio-routes":
		return istioRoutes()
	case len(args) == 1 && args[0] == "istio-tables":
		return istioNFT()
	case len(args) == 1 && args[0] == "tables":
		return tables(out)
	case len(args) == 3 && args[0] == "front":
		return serveFront(ctx, args[1], args[2])
	case len(args) == 3 && args[0] == "front-mode":
		return setFront(ctx, args[1], args[2])
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
