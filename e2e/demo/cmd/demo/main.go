// Command demo shows a Warren mesh on one machine; `make demo` runs it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/warren-mesh/warren/e2e/demo"
)

func main() {
	var c demo.Config
	flag.StringVar(&c.Bins, "bin", "bin", "folder with the four programs and the CNI plugins bridge and host-local")
	flag.StringVar(&c.Proxy, "proxy", "", "another proxy that speaks ZDS, in our proxy's place")
	flag.BoolVar(&c.Keep, "keep", false, "leave the mesh running until Ctrl-C, and print commands to try")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo.Run(ctx, c, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}
