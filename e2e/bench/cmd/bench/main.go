// Command bench measures Warren on one machine; `make bench` runs it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/warren-mesh/warren/e2e/bench"
)

func main() {
	var c bench.Config
	c.RegisterFlags(flag.CommandLine)
	list := flag.Bool("list", false, "print the loads' ids and what they are, and end")
	serve := flag.String("serve", "", "internal: be the traffic's server on this address")
	serveTLS := flag.String("serve-tls", "", "internal: and over TLS on this one")
	cert := flag.String("cert", "", "internal: PEM file of the certificate and key for that")
	board := flag.String("board", "", "internal: file of the counters that both ends see")
	follow := flag.String("follow", "", "internal: follow the control plane at this address")
	play := flag.String("play", "", "internal: be the control plane at this address")
	root := flag.String("root", "", "internal: PEM file of the control plane's root")
	orders := flag.String("orders", "", "internal: Unix socket at which it takes orders")
	size := flag.Int("size", 0, "internal: how many workloads it knows")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case *list:
		bench.List(c, os.Stdout)
	case *serve != "":
		err = bench.ServeEnds(ctx, *serve, *serveTLS, *cert, *board)
	case *follow != "":
		err = bench.Follow(ctx, *follow, *root)
	case *play != "":
		err = bench.Play(ctx, *play, *root, *orders, *size)
	default:
		err = bench.Run(ctx, c, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
