//go:build istiod

package istiod

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// TestDifferential has both translate what xds/translate's own tests are made of, and what
// else it takes to have every field be one that is compared, as an API server stores it. It
// compares everything that a proxy is sent, field by field.
func TestDifferential(t *testing.T) {
	var files []string
	for _, dir := range []string{"../../xds/translate/testdata", "testdata"} {
		list, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
		if err != nil || len(list) == 0 {
			t.Fatalf("no objects in %s: %v", dir, err)
		}
		files = append(files, list...)
	}
	i := bare(t)
	seen, here, there := make(map[string]bool), make(filled), make(filled)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			objects := i.load(t, file)
			defer i.unload(t, objects)
			i.compare(t, accepted, seen, here, there)
		})
	}
	provoked(t, accepted, seen)
	if !t.Failed() {
		everyField(t, here, there)
	}
}

// provoked has each difference that is accepted be one that was seen.
func provoked(t *testing.T, accepted []difference, seen map[string]bool) {
	t.Helper()
	for _, d := range accepted {
		if !seen[d.line] && !d.sometimes && !t.Failed() {
			t.Errorf("there is no difference %q any more: take it out", d.line)
		}
	}
}

// bare is istiod without a mesh around it.
func bare(t *testing.T) *istiod {
	t.Helper()
	o := onehost.Options{Prefix: fmt.Sprintf("wd%d", os.Getpid()%100000), Bins: bins, Dir: t.TempDir(), NoCNI: true, NoWire: true, Nodes: 1}
	m, err := onehost.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	i := &istiod{env: []string{"AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY=true"}}
	if err := i.Start(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return i
}

// load stores the objects of a file.
func (i *istiod) load(t *testing.T, file string) (stored []*unstructured.Unstructured) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []*unstructured.Unstructured
	spaces := map[string]bool{}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		obj := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &obj.Object); err != nil {
			t.Fatal(err)
		}
		fill(obj)
		if obj.GetKind() == "Namespace" {
			spaces[obj.GetName()] = true
		} else if ns := obj.GetNamespace(); ns != "" && !spaces[ns] {
			spaces[ns] = true
			all = append(all, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": ns}}})
		}
		all = append(all, obj)
	}
	slices.SortStableFunc(all, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	for _, obj := range all {
		i.refer(t, obj)
		doc, err := yaml.Marshal(obj.Object)
		if err != nil {
			t.Fatal(err)
		}
		err = i.Put(doc)
		stored = append(stored, obj)
		id := fmt.Sprintf("%s %s/%s", obj.GetKind(), obj.GetNamespace(), obj.GetName())
		switch why, known := refused[id]; {
		case err != nil && !known:
			t.Errorf("not compared: %v", err)
		case err != nil:
			t.Logf("left out (%s): %v", why, err)
		case known:
			t.Errorf("the API server takes %s: it is compared now", id)
		}
	}
	return stored
}

// refer has an EndpointSlice name pods by their UIDs, where it says POD.
func (i *istiod) refer(t *testing.T, obj *unstructured.Unstructured) {
	t.Helper()
	if obj.GetKind() != "EndpointSlice" {
		return
	}
	endpoints, _, _ := unstructured.NestedSlice(obj.Object, "endpoints")
	for _, e := range endpoints {
		to, _ := e.(map[string]any)["targetRef"].(map[string]any)
		if to["uid"] != "POD" {
			continue
		}
		pod, err := i.kube.CoreV1().Pods(to["namespace"].(string)).Get(t.Context(), to["name"].(string), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		to["uid"] = string(pod.UID)
	}
	_ = unstructured.SetNestedSlice(obj.Object, endpoints, "endpoints")
}

// rank puts namespaces first, and a namespace's own definition after an empty one.
func rank(o *unstructured.Unstructured) int {
	switch {
	case o.GetKind() != "Namespace":
		return 2
	case len(o.GetLabels()) > 0:
		return 1
	}
	return 0
}

// fill adds what an API server demands and a translation does not look at.
func fill(o *unstructured.Unstructured) {
	switch o.GetKind() {
	case "Pod":
		if account, _, _ := unstructured.NestedString(o.Object, "spec", "serviceAccountName"); account == "" { // an admission plugin's work
			_ = unstructured.SetNestedField(o.Object, "default", "spec", "serviceAccountName")
		}
		if list, _, _ := unstructured.NestedSlice(o.Object, "spec", "containers"); len(list) == 0 {
			_ = unstructured.SetNestedSlice(o.Object, []any{map[string]any{"name": "app", "image": "app"}}, "spec", "containers")
		}
		spec := o.Object["spec"].(map[string]any)
		first, _ := spec["initContainers"].([]any)
		for _, c := range append(slices.Clone(first), spec["containers"].([]any)...) {
			c := c.(map[string]any)
			for field, value := range map[string]string{"name": "app", "image": "app"} {
				if c[field] == nil {
					c[field] = value
				}
			}
		}
	case "Gateway": // whose definition, in a cluster, has this default
		addresses, _, _ := unstructured.NestedSlice(o.Object, "status", "addresses")
		for _, a := range addresses {
			if a := a.(map[string]any); a["type"] == nil {
				a["type"] = "IPAddress"
			}
		}
		if len(addresses) > 0 {
			_ = unstructured.SetNestedSlice(o.Object, addresses, "status", "addresses")
		}
	case "AuthorizationPolicy": // whose definition here has one version
		o.SetAPIVersion("security.istio.io/v1")
	case "EndpointSlice":
		if o.Object["addressType"] == nil {
			o.Object["addressType"] = "IPv4"
		}
	}
	// The API server has its own.
	unstructured.RemoveNestedField(o.Object, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(o.Object, "metadata", "uid")
}

func (i *istiod) unload(t *testing.T, stored []*unstructured.Unstructured) {
	t.Helper()
	for _, o := range slices.Backward(stored) {
		var err error
		if o.GetKind() == "Namespace" { // nobody would finish its removal
			err = i.Put(fmt.Appendf(nil, "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", o.GetName()))
		} else {
			err = i.Gone(o.GetKind(), o.GetNamespace(), o.GetName())
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// compare waits until istiod has come to what it makes of the objects, for as long as
// there are differences that nobody accepted.
func (i *istiod) compare(t *testing.T, accepted []difference, seen map[string]bool, here, there filled) {
	t.Helper()
	var lines, left []string
	var ours, theirs said
	deadline := time.Now().Add(30 * time.Second)
	for {
		var err error
		if theirs, err = i.says(t.Context()); err != nil {
			t.Fatal(err)
		}
		if ours, err = i.weSay(t); err != nil {
			t.Fatal(err)
		}
		lines, left = append(differences(ours.resources, theirs.resources), otherAliases(ours, theirs)...), nil
		for _, line := range lines {
			if accept(accepted, line) == nil {
				left = append(left, line)
			}
		}
		// A change that is on its way looks like agreement: what is expected to differ must.
		if len(left) == 0 || time.Now().After(deadline) {
			t.Logf("%d resources here, %d at istiod, %d differences accepted", len(ours.resources), len(theirs.resources), len(lines)-len(left))
			break
		}
		time.Sleep(500 * time.Millisecond) // istiod gathers changes for 100 ms
	}
	for _, line := range lines {
		if d := accept(accepted, line); d != nil {
			seen[d.line] = true
			t.Log("accepted: " + line)
		}
	}
	for _, line := range left {
		t.Error(line)
	}
	here.add(ours)
	there.add(theirs)
}

func accept(accepted []difference, line string) *difference {
	for n := range accepted {
		if regexp.MustCompile("^(?:" + accepted[n].line + ")$").MatchString(line) {
			return &accepted[n]
		}
	}
	return nil
}

func kindOf(m proto.Message) string {
	switch m := m.(type) {
	case *workloadapi.Address:
		if m.GetService() != nil {
			return "service"
		}
		return "workload"
	default:
		return "policy"
	}
}

// differences has a line for each field that differs: what, where, ours, theirs.
func differences(ours, theirs map[string]proto.Message) (lines []string) {
	names := slices.Sorted(maps.Keys(ours))
	for name := range theirs {
		if _, both := ours[name]; !both {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		a, b := plain(normal(ours[name])), plain(normal(theirs[name]))
		switch {
		case a == nil:
			lines = append(lines, name+": only at istiod")
		case b == nil:
			lines = append(lines, name+": only here")
		default:
			lines = append(lines, fields(name+": ", "", a, b)...)
		}
	}
	return lines
}

// normal has a policy say what it says in one way. Of what must all hold each condition
// stands by itself, once, in order: one match of two fields is two rules of one. Ranges
// are masked, and IPv4 in IPv6 is IPv4. A service's ranges come after its addresses.
func normal(m proto.Message) proto.Message {
	if a, ok := m.(*workloadapi.Address); ok && a.GetService() != nil {
		a = proto.Clone(a).(*workloadapi.Address)
		isRange := func(a *workloadapi.NetworkAddress) int { return int(min(1, a.GetLength())) }
		slices.SortStableFunc(a.GetService().Addresses, func(x, y *workloadapi.NetworkAddress) int { return isRange(x) - isRange(y) })
		return a
	}
	p, ok := m.(*security.Authorization)
	if !ok {
		return m
	}
	p = proto.Clone(p).(*security.Authorization)
	for _, g := range p.Groups {
		var rules []*security.Rules
		for _, r := range g.Rules {
			for _, match := range r.Matches {
				for _, list := range [][]*security.Address{match.SourceIps, match.NotSourceIps, match.DestinationIps, match.NotDestinationIps} {
					for _, a := range list {
						mask(a)
					}
				}
			}
			rules = append(rules, conditions(r)...)
		}
		g.Rules = once(rules)
	}
	p.Groups = once(p.Groups)
	return p
}

func mask(a *security.Address) {
	ip, ok := netip.AddrFromSlice(a.Address)
	if !ok {
		return
	}
	bits := int(a.Length)
	if ip.Is4In6() && bits >= 96 {
		ip, bits = ip.Unmap(), bits-96
	}
	if p, err := ip.Prefix(bits); err == nil {
		a.Address, a.Length = p.Addr().AsSlice(), uint32(bits)
	}
}

// conditions are the fields of a rule's only match, each as a rule.
func conditions(r *security.Rules) (out []*security.Rules) {
	if len(r.Matches) != 1 {
		return []*security.Rules{r}
	}
	r.Matches[0].ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		one := &security.Match{}
		one.ProtoReflect().Set(f, v)
		out = append(out, &security.Rules{Matches: []*security.Match{one}})
		return true
	})
	if len(out) == 0 { // a match without fields is one that never holds
		return []*security.Rules{r}
	}
	return out
}

// once has each message once, in one order.
func once[M proto.Message](list []M) (out []M) {
	byText := make(map[string]M)
	for _, m := range list {
		b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		byText[string(b)] = m
	}
	for _, k := range slices.Sorted(maps.Keys(byText)) {
		out = append(out, byText[k])
	}
	return out
}

// plain is a message as JSON has it, nil for none.
func plain(m proto.Message) any {
	if m == nil {
		return nil
	}
	b, err := protojson.Marshal(m)
	if err != nil {
		return err.Error()
	}
	var v any
	_ = json.Unmarshal(b, &v)
	return v
}

func fields(name, path string, a, b any) (lines []string) {
	x, xok := a.(map[string]any)
	y, yok := b.(map[string]any)
	if !xok || !yok {
		if left, right := text(a), text(b); left != right {
			return []string{name + strings.TrimPrefix(path, ".") + " here " + left + ", at istiod " + right}
		}
		return nil
	}
	keys := slices.Collect(maps.Keys(x))
	for k := range y {
		if _, both := x[k]; !both {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		lines = append(lines, fields(name, path+"."+k, x[k], y[k])...)
	}
	return lines
}

func text(v any) string {
	if v == nil {
		return "nothing"
	}
	b, _ := json.Marshal(v)
	return string(b)
}
