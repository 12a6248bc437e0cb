// Command images builds Warren's container images, and locks the Debian
// packages that are in one of them.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/warren-mesh/warren/manifests/tools/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

func run(ctx context.Context) error {
	var c images.Command
	archs := flag.String("arch", strings.Join(images.Archs(), ","), "architectures")
	flag.StringVar(&c.Lock, "lock", "manifests/tools/debian.lock", "file of the Debian packages' versions and sums")
	flag.StringVar(&c.Bin, "bin", "bin", "folder with a folder linux-ARCH of programs for each architecture")
	flag.StringVar(&c.Out, "out", "bin/images", "folder for the images")
	flag.StringVar(&c.Cache, "cache", ".cache/debs", "folder of packages that were downloaded before")
	flag.StringVar(&c.License, "license", "LICENSE", "file that goes into each image")
	flag.StringVar(&c.Version, "version", "dev", "the images' tag")
	flag.BoolVar(&c.ForTests, "for-tests", false, "build the image of the cluster tests as well")
	relock := flag.Bool("relock", false, "write the lock file with the newest versions, and build nothing")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("takes no arguments, not %q", flag.Args())
	}
	c.Archs = strings.Split(*archs, ",")
	if *relock {
		return c.Relock(ctx)
	}
	return c.Build(ctx, os.Stdout)
}
