// Command nodeagent takes the pods of one node into the mesh.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/warren-mesh/warren/nodeagent"
)

// version is set when it is built.
var version = "dev"

func main() { os.Exit(run()) }

func run() int {
	// The second signal ends the process the hard way.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	cmd := nodeagent.Command()
	cmd.Version = version
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	exit := &nodeagent.ExitError{Code: 1, Err: err}
	errors.As(err, &exit)
	if exit.Err != nil {
		fmt.Fprintln(os.Stderr, "nodeagent:", exit.Err)
	}
	return exit.Code
}
