package manifests_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The committed folders are those that the chart gives now.
func TestKustomizeIsOfTheChart(t *testing.T) {
	dir := t.TempDir()
	if _, err := tryRender(t, "split", chart, dir); err != nil {
		t.Fatal(err)
	}
	want, got := files(t, dir), files(t, "kustomize")
	for path := range got {
		if strings.HasPrefix(path, "overlays/kind/") { // by hand
			delete(got, path)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("run make manifests (-chart +committed):\n%s", d)
	}
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	list := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list[path] = read(t, filepath.Join(dir, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// An overlay is the chart with the profile of its name, object by object.
func TestOverlays(t *testing.T) {
	overlays, err := os.ReadDir("kustomize/overlays")
	if err != nil || len(overlays) == 0 {
		t.Fatal(overlays, err)
	}
	profiles, err := os.ReadDir(chart + "/profiles")
	if err != nil || len(profiles) != len(overlays)-1 { // default has none
		t.Error(profiles, err)
	}
	for _, o := range overlays {
		t.Run(o.Name(), func(t *testing.T) {
			args := []string{"chart"}
			switch o.Name() {
			case "default":
				args = append(args, "-set", "namespace.create=true")
			case "istio":
				args = append(args, "-namespace", "istio-system", "-f", chart+"/profiles/istio.yaml")
			default:
				args = append(args, "-set", "namespace.create=true", "-f", chart+"/profiles/"+o.Name()+".yaml")
			}
			want := byName(rendered(t, append(args, chart)...))
			got := byName(rendered(t, "kustomize", "kustomize/overlays/"+o.Name()))
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-chart +overlay):\n%s", d)
			}
		})
	}
}

func byName(list []object) map[string]map[string]any {
	out := map[string]map[string]any{}
	for _, o := range list {
		out[o.name] = o.plain
	}
	return out
}

// Each component builds upon the base.
func TestComponents(t *testing.T) {
	components, err := os.ReadDir("kustomize/components")
	if err != nil || len(components) == 0 {
		t.Fatal(components, err)
	}
	base := len(rendered(t, "kustomize", "kustomize/base"))
	for _, c := range components {
		dir, err := os.MkdirTemp("kustomize", "test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		text := "resources: [../base]\ncomponents: [../components/" + c.Name() + "]\n"
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n := len(rendered(t, "kustomize", dir)); n <= base {
			t.Errorf("%s: %d objects, the base has %d", c.Name(), n, base)
		}
		os.RemoveAll(dir)
	}
}

// Nothing that is rendered is without a namespace by mistake, or in another.
func TestNamespaces(t *testing.T) {
	everywhere := []string{"Namespace", "ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
	for _, o := range rendered(t, "chart", "-namespace", "mesh", "-set", "namespace.create=true", "-set", "podMonitors.enabled=true", "-set", "dashboard.enabled=true",
		"-set", "openshift.enabled=true", "-set", "resourceQuota.enabled=true", chart) {
		kind, rest, _ := strings.Cut(o.name, "/")
		namespace, _, _ := strings.Cut(rest, "/")
		if want := map[bool]string{true: "", false: "mesh"}[slices.Contains(everywhere, kind)]; namespace != want {
			t.Errorf("%s: in the namespace %q, want %q", o.name, namespace, want)
		}
	}
}
