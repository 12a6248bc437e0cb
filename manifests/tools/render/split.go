package render

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

const header = "# Made of the chart by `make manifests`: change it there.\n"

func newLines(text string) *bufio.Reader { return bufio.NewReader(strings.NewReader(text)) }

// Split writes the parts of a chart below dir.
func Split(chart, dir string) error {
	for _, p := range Parts() {
		if err := p.write(chart, filepath.Join(dir, p.Dir)); err != nil {
			return fmt.Errorf("%s: %w", p.Dir, err)
		}
	}
	return nil
}

// Chart is the install that the part is made of.
func (p Part) Chart(dir string) (c Chart, err error) {
	c = Chart{Dir: dir, Release: "warren", Namespace: p.Namespace, Set: p.Set}
	if c.Namespace == "" {
		c.Namespace = "warren-system"
	}
	if p.Profile != "" {
		c.Values, err = os.ReadFile(filepath.Join(dir, "profiles", p.Profile+".yaml"))
	}
	return c, err
}

func (p Part) write(chart, dir string) error {
	c, err := p.Chart(chart)
	if err != nil {
		return err
	}
	templates, err := c.Templates()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	errs := []error{os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(p.kustomization()), 0o644)}
	for i, name := range append(p.Files, p.Replace...) {
		text, ok := templates[path.Join("templates", name)]
		if !ok {
			return fmt.Errorf("the chart's %s gives nothing", name)
		}
		text = strings.TrimPrefix(text, "---\n")
		if i >= len(p.Files) {
			text = strings.ReplaceAll("\n"+text, "\nspec:\n", "\nspec:\n  $patch: replace\n")[1:]
		}
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), []byte(header+text), 0o644))
	}
	return errors.Join(errs...)
}

func (p Part) kustomization() string {
	version, kind := "v1beta1", "Kustomization"
	if p.Component {
		version, kind = "v1alpha1", "Component"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s# %s\napiVersion: kustomize.config.k8s.io/%s\nkind: %s\n", header, p.About, version, kind)
	list := func(key, prefix string, items []string) {
		if len(items) > 0 {
			fmt.Fprintf(&b, "%s:\n", key)
		}
		for _, i := range items {
			fmt.Fprintf(&b, "  - %s%s\n", prefix, i)
		}
	}
	list("resources", "", append(p.Resources, p.Files...))
	list("components", "", p.Components)
	list("patches", "path: ", p.Replace)
	return b.String()
}
