package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// untilTold ends its context with the first SIGINT or SIGTERM. A SIGINT after
// that ends the process at once; whoever says SIGTERM twice means the same drain.
func untilTold(exit func(int)) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	told := make(chan os.Signal, 4)
	signal.Notify(told, os.Interrupt, syscall.SIGTERM)
	go func() {
		for s := range told {
			if s == os.Interrupt && ctx.Err() != nil {
				exit(0)
			}
			cancel()
		}
	}()
	return ctx, func() { signal.Stop(told); close(told); cancel() }
}
