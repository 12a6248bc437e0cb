package manifests_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

const chart = "charts/warren"

// renderer is the program that `make test` builds, or one built here.
var renderer = sync.OnceValues(func() (string, error) {
	if bins := os.Getenv("WARREN_BINS"); bins != "" {
		return filepath.Join(bins, "render"), nil
	}
	dir, err := os.MkdirTemp("", "warren-render")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "render")
	out, err := exec.Command("go", "-C", "tools", "build", "-o", path, "./cmd/render").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the renderer: %w\n%s", err, out)
	}
	return path, nil
})

// tryRender runs the renderer.
func tryRender(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := renderer()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	var errText bytes.Buffer
	cmd.Stderr = &errText
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("render %s: %w: %s", strings.Join(args, " "), err, errText.Bytes())
	}
	return string(out), err
}

// object is a rendered one.
type object struct {
	runtime.Object        // as Kubernetes' type; nil for what is not Kubernetes' own
	name           string // kind/namespace/name
	plain          map[string]any
}

// rendered decodes what the renderer gives, strictly: a field that its type does
// not have, or one that is there twice, fails the test.
func rendered(t *testing.T, args ...string) []object {
	t.Helper()
	text, err := tryRender(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	codec := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var list []object
	reader := utilyaml.NewDocumentDecoder(io.NopCloser(strings.NewReader(text)))
	defer reader.Close()
	buf := make([]byte, len(text)+1)
	for {
		n, err := reader.Read(buf)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		var u unstructured.Unstructured
		if err := yaml.UnmarshalStrict(buf[:n], &u.Object); err != nil {
			t.Fatalf("%v in\n%s", err, buf[:n])
		}
		if len(u.Object) == 0 {
			continue
		}
		o := object{plain: u.Object, name: u.GetKind() + "/" + u.GetNamespace() + "/" + u.GetName()}
		if o.Object, _, err = codec.Decode(buf[:n], nil, nil); runtime.IsNotRegisteredError(err) {
			if gv := u.GroupVersionKind().GroupVersion().String(); gv != "monitoring.coreos.com/v1" { // the renderer knows these
				t.Errorf("%s: %s is unknown", o.name, gv)
			}
		} else if err != nil {
			t.Errorf("%s: %v", o.name, err)
		}
		list = append(list, o)
	}
}

// installed renders the chart with values.
func installed(t *testing.T, set ...string) []object {
	t.Helper()
	args := []string{"chart"}
	for _, s := range set {
		args = append(args, "-set", s)
	}
	return rendered(t, append(args, chart)...)
}

// find returns the only object of a type and name.
func find[T runtime.Object](t *testing.T, list []object, name string) T {
	t.Helper()
	var found []T
	for _, o := range list {
		if typed, ok := o.Object.(T); ok && strings.HasSuffix(o.name, "/"+name) {
			found = append(found, typed)
		}
	}
	if len(found) != 1 {
		var none T
		t.Fatalf("%d objects of type %T are called %s", len(found), none, name)
	}
	return found[0]
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
