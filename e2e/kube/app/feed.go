package app

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// feed runs another program with a text as its input; images without a shell have no
// other way.
func feed(ctx context.Context, text string, command []string, out io.Writer) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var told strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), out, &told
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, told.String())
	}
	return nil
}

// lend puts this program where containers of other images can run it.
func lend(path string) error {
	from, err := os.Executable()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o755)
}
