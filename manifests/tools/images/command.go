package images

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// Command is what the program images does.
type Command struct {
	Lock, Bin, Out, Cache, License, Version string
	Archs                                   []string
	ForTests                                bool // the image of the cluster tests as well
}

// Relock writes the lock file anew.
func (c Command) Relock(ctx context.Context) error {
	list, err := Resolve(ctx, c.Archs)
	if err != nil {
		return err
	}
	return os.WriteFile(c.Lock, FormatLock(list), 0o644)
}

// Build builds every image for every architecture, and prints a line for each.
func (c Command) Build(ctx context.Context, out io.Writer) error {
	text, err := os.ReadFile(c.Lock)
	if err != nil {
		return err
	}
	list, err := ParseLock(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("%s: %w", c.Lock, err)
	}
	license, err := os.ReadFile(c.License)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return err
	}
	for _, arch := range c.Archs {
		if !slices.Contains(Archs(), arch) {
			return fmt.Errorf("no images are built for %q, only for %v", arch, Archs())
		}
		debs, err := Fetch(ctx, c.Cache, slices.DeleteFunc(slices.Clone(list), func(l Locked) bool { return l.Arch != arch }))
		if err != nil {
			return err
		}
		in := Input{Version: c.Version, Arch: arch, Bin: filepath.Join(c.Bin, "linux-"+arch), License: license, Debian: debs}
		all := All()
		if c.ForTests {
			all = append(all, ForTests())
		}
		for _, img := range all {
			if err := c.build(img, in, out); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c Command) build(img Image, in Input, out io.Writer) error {
	built, err := Build(img, in)
	if err != nil {
		return err
	}
	id, err := built.ConfigName() // what `docker image ls` calls the image
	if err != nil {
		return err
	}
	path := filepath.Join(c.Out, img.Name+"-"+in.Arch+".tar")
	if err := Save(path, built, img.Name, c.Version); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s %s:%s %s\n", path, img.Name, c.Version, id)
	return err
}
