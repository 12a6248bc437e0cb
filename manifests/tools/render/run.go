package render

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

// Run is the program.
func Run(args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("want chart, kustomize or split")
	}
	var text string
	var err error
	switch what, args := args[0], args[1:]; {
	case what == "chart":
		text, err = runChart(args)
	case what == "kustomize" && len(args) == 1:
		text, err = Kustomize(args[0])
	case what == "split" && len(args) == 2:
		return Split(args[0], args[1])
	default:
		return fmt.Errorf("%s %q: want chart [flags] DIR, kustomize DIR, or split CHART DIR", what, args)
	}
	if err == nil {
		err = Check(text)
	}
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, text)
	return err
}

func runChart(args []string) (string, error) {
	var c Chart
	var values, existing string
	fs := flag.NewFlagSet("chart", flag.ContinueOnError)
	fs.StringVar(&c.Release, "release", "warren", "name of the release")
	fs.StringVar(&c.Namespace, "namespace", "warren-system", "namespace of the release")
	fs.BoolVar(&c.Upgrade, "upgrade", false, "an upgrade rather than an install")
	fs.BoolVar(&c.Hooks, "hooks", false, "what helm runs before, beside or after, instead of what it installs")
	fs.StringVar(&values, "f", "", "file of values")
	fs.StringVar(&existing, "existing", "", "file of objects that are in the cluster")
	fs.Func("set", "a value, as name=value", func(s string) error { c.Set = append(c.Set, s); return nil })
	if err := fs.Parse(args); err != nil {
		return "", err
	}
	if fs.NArg() != 1 {
		return "", fmt.Errorf("want the folder of one chart, not %q", fs.Args())
	}
	c.Dir = fs.Arg(0)
	for _, f := range []struct {
		name string
		to   *[]byte
	}{{values, &c.Values}, {existing, &c.Existing}} {
		if f.name == "" {
			continue
		}
		text, err := os.ReadFile(f.name)
		if err != nil {
			return "", err
		}
		*f.to = text
	}
	return c.Manifest()
}
