package app

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// files is for the pod that sees a node's file system: list, read, write, rename and
// remove, of single files.
func files(args []string, out io.Writer) error {
	switch {
	case len(args) == 2 && args[0] == "ls":
		entries, err := os.ReadDir(args[1])
		for _, e := range entries {
			fmt.Fprintln(out, e.Name())
		}
		return err
	case len(args) == 2 && args[0] == "cat":
		b, err := os.ReadFile(args[1])
		if err == nil {
			_, err = out.Write(b)
		}
		return err
	case len(args) == 3 && args[0] == "write":
		tmp := filepath.Join(filepath.Dir(args[1]), ".e2e-"+strings.TrimPrefix(filepath.Base(args[1]), "."))
		if err := os.WriteFile(tmp, []byte(args[2]), 0o644); err != nil {
			return err
		}
		return os.Rename(tmp, args[1])
	case len(args) == 3 && args[0] == "mv":
		return os.Rename(args[1], args[2])
	case len(args) == 2 && args[0] == "rm":
		return os.Remove(args[1])
	}
	return fmt.Errorf("file %s: want ls DIR, cat FILE, write FILE TEXT, mv FROM TO or rm FILE", strings.Join(args, " "))
}
