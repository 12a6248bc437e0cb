// Command bench measures Warren on one machine; `make bench` runs it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/warren-mesh/warren/e2e/bench"
)

func main() {
	var c bench.Config
	flag.StringVar(&c.Bins, "bin", "bin", "folder with the four programs and the CNI plugins bridge and host-local")
	flag.StringVar(&c.Peer, "peer", "", "another proxy that speaks ZDS, measured in the same run")
	flag.IntVar(&c.Rounds, "rounds", 5, "rounds; the tables show medians")
	flag.DurationVar(&c.Length, "length", 2*time.Second, "length of one bulk or request/response measurement")
	flag.IntVar(&c.Idle, "idle", 10_000, "idle connections for the memory figure (0: leave it out)")
	serve := flag.String("serve", "", "internal: be the traffic's server on this address")
	cert := flag.String("tls", "", "internal: with -serve, the PEM file of its certificate and key")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *serve != "" {
		err = bench.Serve(ctx, *serve, *cert)
	} else {
		err = bench.Run(ctx, c, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
