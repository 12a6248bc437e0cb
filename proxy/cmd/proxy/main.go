// Command proxy is the data plane of one node. It takes the arguments and the
// environment of ztunnel, so that its image can stand in ztunnel's place.
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/warren-mesh/warren/internal/nodump"
	"github.com/warren-mesh/warren/proxy"
)

// version is set when it is built.
var version = "dev"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	signal.Ignore(syscall.SIGPIPE) // a log that nobody reads any more must not end the pods' connections
	switch {
	case len(args) == 0, args[0] == "proxy" && (len(args) == 1 || len(args) == 2 && args[1] == "ztunnel"):
	case len(args) == 1 && args[0] == "version":
		fmt.Fprint(stdout, proxy.VersionText(version))
		return 0
	case len(args) == 1 && args[0] == "help":
		fmt.Fprint(stdout, proxy.Usage)
		return 0
	default:
		fmt.Fprintf(stderr, "proxy: unknown arguments %q\n%s", args, proxy.Usage)
		return 2
	}
	cfg, err := proxy.FromEnviron(os.Environ())
	if err != nil {
		fmt.Fprintln(stderr, "proxy: configuration:\n"+err.Error())
		return 1
	}
	if err := nodump.Set(); err != nil { // before there is a key
		fmt.Fprintln(stderr, "proxy:", err)
		return 1
	}
	ctx, stop := untilTold(os.Exit)
	defer stop()
	if err = proxy.Main(ctx, cfg, version, stdout); err != nil {
		fmt.Fprintln(stderr, "proxy:", err)
		return 1
	}
	return 0
}
