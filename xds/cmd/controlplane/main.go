// Command controlplane serves the mesh model and certificates to the proxies.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/warren-mesh/warren/internal/nodump"
	"github.com/warren-mesh/warren/xds/controlplane"
)

// version is set when it is built.
var version = "dev"

func main() {
	if err := nodump.Set(); err != nil { // before there is a key
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

func command() *cobra.Command {
	cfg := controlplane.Defaults()
	var level slog.Level
	var mistakes func() error
	cmd := &cobra.Command{
		Use:           "controlplane",
		Short:         "Serve the mesh model (xDS) and certificates (CA) to the proxies",
		Version:       controlplane.VersionText(version),
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(mistakes(), cfg.Validate()); err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			return controlplane.Run(cmd.Context(), cfg, log)
		},
	}
	cfg.RegisterFlags(cmd.Flags())
	cmd.Flags().TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	cmd.AddCommand(controlplane.CACommand())
	mistakes = controlplane.CollectMistakes(cmd.Flags())
	return cmd
}
