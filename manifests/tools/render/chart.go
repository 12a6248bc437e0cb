package render

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/releaseutil"
	"helm.sh/helm/v3/pkg/strvals"
	"sigs.k8s.io/yaml"
)

// Chart is an install, or an upgrade, of a chart.
type Chart struct {
	Dir       string
	Release   string
	Namespace string
	Upgrade   bool
	Values    []byte   // YAML over the chart's own
	Set       []string // name=value over that, as helm takes it
	Existing  []byte   // YAML of the objects that are in the cluster
	Hooks     bool     // only what helm runs beside, before or after
}

// Templates returns what each template gives, by its path in the chart; those
// that give nothing are left out. Comments are kept.
func (c Chart) Templates() (map[string]string, error) {
	chrt, err := loader.LoadDir(c.Dir)
	if err != nil {
		return nil, err
	}
	values, err := c.values(chrt)
	if err != nil {
		return nil, err
	}
	cluster, err := newCluster(c.Existing)
	if err != nil {
		return nil, err
	}
	all, err := engine.RenderWithClientProvider(chrt, values, cluster)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for p, text := range all {
		p = strings.TrimPrefix(p, chrt.Name()+"/")
		if ext := path.Ext(p); (ext == ".yaml" || ext == ".yml") && !blank(text) {
			out[p] = strings.Trim(text, "\n") + "\n"
		}
	}
	return out, nil
}

// values are the chart's with ours over them, held to the chart's schema.
func (c Chart) values(chrt *chart.Chart) (chartutil.Values, error) {
	var over map[string]any
	if err := yaml.UnmarshalStrict(c.Values, &over); err != nil {
		return nil, fmt.Errorf("values: %w", err)
	}
	if over == nil {
		over = map[string]any{}
	}
	for _, s := range c.Set {
		if err := strvals.ParseInto(s, over); err != nil {
			return nil, fmt.Errorf("-set %s: %w", s, err)
		}
	}
	options := chartutil.ReleaseOptions{Name: c.Release, Namespace: c.Namespace, Revision: 1, IsInstall: !c.Upgrade, IsUpgrade: c.Upgrade}
	return chartutil.ToRenderValues(chrt, over, options, nil)
}

// Manifest is everything that the chart gives, in the order in which helm
// installs it; or instead, its hooks, in the order in which helm runs them.
func (c Chart) Manifest() (string, error) {
	templates, err := c.Templates()
	if err != nil {
		return "", err
	}
	hooks, sorted, err := releaseutil.SortManifests(maps.Clone(templates), nil, releaseutil.InstallOrder)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	add := func(name, content string) {
		fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", name, strings.Trim(content, "\n"))
	}
	if c.Hooks {
		slices.SortStableFunc(hooks, func(a, b *release.Hook) int { return a.Weight - b.Weight })
		for _, h := range hooks {
			add(h.Path, h.Manifest)
		}
		return b.String(), nil
	}
	for _, m := range sorted {
		add(m.Name, m.Content)
	}
	return b.String(), nil
}

// Paths are the templates' paths, sorted.
func Paths(templates map[string]string) []string { return slices.Sorted(maps.Keys(templates)) }

// blank says whether a text has nothing but comments and separators.
func blank(text string) bool {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && line != "---" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}
