package manifests_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/warren-mesh/warren/nodeagent"
)

// right is one verb on one resource: "verb group/resource".
type right = string

func rightTo(verb, group, resource string) right { return verb + " " + group + "/" + resource }

// What the roles grant is what the code asks for, no less and no more.
func TestRBAC(t *testing.T) {
	agent := asked(t, "nodeagent", leaving) // which is not the agent's, but the hook's
	maps.Copy(agent, askedBy(t, "xds/kube", "addNode", "addNamespaces"))
	cp := asked(t, "xds/controlplane")
	maps.Copy(cp, asked(t, "ca/kubeauth"))
	maps.Copy(cp, askedBy(t, "xds/kube", "addCluster", "addNamespaces", "addCustom"))
	list := installed(t, "nodeagent.removeTaints[0]=x")
	for name, want := range map[string]map[right]string{"warren-nodeagent": agent, "warren-controlplane": cp} {
		t.Run(name, func(t *testing.T) {
			if len(want) < 5 {
				t.Fatalf("only %v was found in the code", want)
			}
			got := granted(t, list, name)
			for r, where := range want {
				if !got[r] {
					t.Errorf("%s: %q is not granted", where, r)
				}
			}
			for r := range got {
				if want[r] == "" {
					t.Errorf("%q is granted, and nothing asks for it", r)
				}
			}
		})
	}
}

// leaving is the function behind the hook that has the agents leave before an uninstall.
const leaving = "EndDaemonSet"

// The hook may do what it does, and has nothing else; it runs before anything goes, and
// as little privileged as can be.
func TestLeaveHook(t *testing.T) {
	list := rendered(t, "chart", "-hooks", chart)
	got := map[right]bool{}
	for _, r := range find[*rbacv1.Role](t, list, "warren-leave").Rules {
		if !slices.Equal(r.ResourceNames, []string{"warren-nodeagent"}) {
			t.Errorf("a rule for all of them: %+v", r)
		}
		for _, verb := range r.Verbs {
			got[rightTo(verb, r.APIGroups[0], r.Resources[0])] = true
		}
	}
	want := map[right]bool{}
	for r := range askedBy(t, "nodeagent/podwatch", leaving) {
		want[r] = true
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("rights (-want +got):\n%s", d)
	}
	var order []string
	for _, o := range list {
		notes, _, _ := unstructured.NestedStringMap(o.plain, "metadata", "annotations")
		if notes["helm.sh/hook"] != "pre-delete" {
			t.Errorf("%s: %v", o.name, notes)
		}
		kind, _, _ := strings.Cut(o.name, "/")
		order = append(order, kind)
	}
	if d := cmp.Diff([]string{"RoleBinding", "Job"}, order[len(order)-2:]); d != "" {
		t.Errorf("order %v", order)
	}
	pod := find[*batchv1.Job](t, list, "warren-leave").Spec.Template.Spec
	s := pod.Containers[0].SecurityContext
	if !isTrue(s.RunAsNonRoot) || !isTrue(s.ReadOnlyRootFilesystem) || !isFalse(s.AllowPrivilegeEscalation) || len(s.Capabilities.Add) > 0 || pod.HostNetwork || len(pod.Volumes) > 0 ||
		pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("%+v, %+v", pod.SecurityContext, s)
	}
	cmd := nodeagent.Command()
	cmd.SetArgs(append(pod.Containers[0].Args, "--help"))
	cmd.SetOut(io.Discard)
	if err := cmd.Execute(); err != nil {
		t.Errorf("%v: %v", pod.Containers[0].Args, err)
	}
	for _, o := range installed(t) {
		if strings.Contains(o.name, "warren-leave") {
			t.Errorf("%s is installed", o.name)
		}
	}
}

func granted(t *testing.T, list []object, name string) map[right]bool {
	t.Helper()
	rules := append(find[*rbacv1.ClusterRole](t, list, name+"-warren-system").Rules, find[*rbacv1.Role](t, list, name).Rules...)
	out := map[right]bool{}
	for _, r := range rules {
		if len(r.NonResourceURLs) > 0 || slices.Contains(r.Verbs, "*") || slices.Contains(r.Resources, "*") || slices.Contains(r.APIGroups, "*") {
			t.Errorf("a rule without bounds: %+v", r)
		}
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				for _, verb := range r.Verbs {
					out[rightTo(verb, group, resource)] = true
				}
			}
		}
	}
	return out
}

// Only what has a fixed name is named: Secrets, the Lease, the root ConfigMap.
func TestRBACNames(t *testing.T) {
	list := installed(t)
	got := map[string][]string{}
	for _, o := range list {
		var rules []rbacv1.PolicyRule
		switch r := o.Object.(type) {
		case *rbacv1.Role:
			rules = r.Rules
		case *rbacv1.ClusterRole:
			rules = r.Rules
		}
		for _, r := range rules {
			switch r.Resources[0] {
			case "secrets", "configmaps", "leases", "daemonsets":
				if !slices.Equal(r.Verbs, []string{"create"}) { // which cannot be narrowed
					got[r.Resources[0]] = append(got[r.Resources[0]], r.ResourceNames...)
				}
			}
		}
	}
	want := map[string][]string{
		"secrets": {"cacerts", "istio-ca-secret", "warren-ca-rotation"}, "configmaps": {"istio-ca-root-cert", "warren-ca-issued"},
		"leases": {"warren-controlplane-leader"}, "daemonsets": {"warren-nodeagent"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for name, file := range map[string]string{
		"cacerts": "xds/controlplane", "istio-ca-secret": "xds/controlplane", "warren-ca-rotation": "xds/controlplane", "warren-ca-issued": "xds/controlplane", "istio-ca-root-cert": "xds/controlplane", "warren-controlplane-leader": "xds/controlplane",
	} {
		if !sourcesContain(t, file, strconv.Quote(name)) {
			t.Errorf("no source in %s says %q", file, name)
		}
	}
}

func sourcesContain(t *testing.T, dir, text string) (found bool) {
	t.Helper()
	for p := range sources(t, dir) {
		found = found || strings.Contains(read(t, p), text)
	}
	return found
}

// groups are the API groups behind client-go's accessors.
var groups = map[string]string{
	"CoreV1": "", "Core": "", "AppsV1": "apps", "DiscoveryV1": "discovery.k8s.io", "CoordinationV1": "coordination.k8s.io",
	"AuthenticationV1": "authentication.k8s.io",
}

var accessorRE = regexp.MustCompile(`^[A-Z][A-Za-z]+V[0-9][a-z0-9]*$`)

// verbs are RBAC's words for clients' methods.
var verbs = map[string][]string{
	"Get": {"get"}, "List": {"list"}, "Watch": {"watch"}, "Create": {"create"}, "Update": {"update"}, "Patch": {"patch"}, "Delete": {"delete"},
	"DeleteCollection": {"deletecollection"}, "Apply": {"patch"}, "UpdateStatus": {"update/status"}, "ApplyStatus": {"patch/status"},
	"Informer": {"list", "watch"}, "Lister": {"list", "watch"},
}

// asked finds what the packages in and below a folder ask of API servers, but for some
// functions.
func asked(t *testing.T, dir string, but ...string) map[right]string {
	t.Helper()
	out := map[right]string{}
	for p, f := range sources(t, dir) {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && slices.Contains(but, fn.Name.Name) {
				continue
			}
			maps.Copy(out, askedIn(t, p, d))
		}
	}
	return out
}

// askedBy finds what some functions of a package ask for.
func askedBy(t *testing.T, dir string, functions ...string) map[right]string {
	t.Helper()
	out := map[right]string{}
	seen := map[string]bool{}
	for p, f := range sources(t, dir) {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && slices.Contains(functions, fn.Name.Name) {
				seen[fn.Name.Name] = true
				maps.Copy(out, askedIn(t, p, d))
			}
		}
	}
	if len(seen) != len(functions) {
		t.Fatalf("%s: found only %v of %v", dir, slices.Collect(maps.Keys(seen)), functions)
	}
	return out
}

// sources are a folder's Go files, those of the folders below it too, but tests.
func sources(t *testing.T, dir string) map[string]*ast.File {
	t.Helper()
	out := map[string]*ast.File{}
	err := fs.WalkDir(os.DirFS(".."), dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(p) != ".go" || strings.HasSuffix(p, "_test.go") {
			return err
		}
		p = "../" + p
		out[p], err = parser.ParseFile(token.NewFileSet(), p, nil, 0)
		return err
	})
	if err != nil || len(out) == 0 {
		t.Fatal(dir, err)
	}
	return out
}

// askedIn looks through one declaration: for clients of a resource, such as
// c.CoreV1().Pods(ns), and the methods that are called on them, or on the
// variable that they are put into. A client that is passed on is for lists and
// watches.
func askedIn(t *testing.T, where string, d ast.Decl) map[right]string {
	out := map[right]string{}
	add := func(group, resource string, verbs ...string) {
		for _, v := range verbs {
			if verb, sub, ok := strings.Cut(v, "/"); ok {
				out[rightTo(verb, group, resource+"/"+sub)] = where
			} else {
				out[rightTo(v, group, resource)] = where
			}
		}
	}
	used := map[ast.Node]bool{}         // clients that a method is called on
	kept := map[string][2]string{}      // variables that hold one
	clients := map[ast.Node][2]string{} // group and resource
	ast.Inspect(d, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if group, resource, ok := client(t, where, call); ok {
				clients[call] = [2]string{group, resource}
			}
		}
		if a, ok := n.(*ast.AssignStmt); ok && len(a.Lhs) == 1 && len(a.Rhs) == 1 {
			call, isCall := a.Rhs[0].(*ast.CallExpr)
			id, isName := a.Lhs[0].(*ast.Ident)
			if isCall && isName {
				if group, resource, ok := client(t, where, call); ok {
					kept[id.Name] = [2]string{group, resource}
					used[call] = true
				}
			}
		}
		return true
	})
	ast.Inspect(d, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		to, isClient := clients[sel.X]
		if id, ok := sel.X.(*ast.Ident); ok && !isClient {
			to, isClient = kept[id.Name]
		}
		if !isClient {
			return true
		}
		used[sel.X] = true
		v, known := verbs[sel.Sel.Name]
		if !known {
			t.Errorf("%s: what does %s ask for?", where, sel.Sel.Name)
		}
		if sub := subresource(call); sub != "" {
			v = []string{v[0] + "/" + sub}
		}
		add(to[0], to[1], v...)
		return true
	})
	for call, to := range clients {
		if !used[call] {
			add(to[0], to[1], "list", "watch")
		}
	}
	others(t, where, d, add)
	return out
}

// client says whether a call returns a client of a resource: it is called on an
// accessor of a group's version.
func client(t *testing.T, where string, call *ast.CallExpr) (group, resource string, ok bool) {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", "", false
	}
	inner, ok := sel.X.(*ast.CallExpr)
	if !ok || len(inner.Args) != 0 {
		return "", "", false
	}
	accessor, ok := inner.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", "", false
	}
	name := accessor.Sel.Name
	if name == "V1" { // an informer factory's: Core().V1().Pods()
		if up, isCall := accessor.X.(*ast.CallExpr); isCall {
			if s, isSel := up.Fun.(*ast.SelectorExpr); isSel {
				name = s.Sel.Name
			}
		}
	} else if !accessorRE.MatchString(name) {
		return "", "", false
	}
	group, known := groups[name]
	if !known {
		t.Errorf("%s: of which API group is %s?", where, name)
	}
	return group, strings.ToLower(sel.Sel.Name), true
}

// subresource is the last argument of a Patch, if it is a text.
func subresource(call *ast.CallExpr) string {
	if len(call.Args) == 0 {
		return ""
	}
	lit, ok := call.Args[len(call.Args)-1].(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	s, _ := strconv.Unquote(lit.Value)
	return s
}

// others finds what is not asked for by way of a typed client.
func others(t *testing.T, where string, d ast.Decl, add func(group, resource string, verbs ...string)) {
	texts := func(args []ast.Expr) (out []string) {
		for _, a := range args {
			if lit, ok := a.(*ast.BasicLit); ok {
				s, _ := strconv.Unquote(lit.Value)
				out = append(out, s)
			}
		}
		return out
	}
	ast.Inspect(d, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			// xds/kube's table of kinds that may not be there.
			if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "add" && len(texts(n.Args)) == 3 {
				add(texts(n.Args)[0], texts(n.Args)[1], "list", "watch")
			}
			// Dynamic clients write the status of a few kinds and nothing else; that of
			// metadata lists pods.
			if sel, ok := n.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Resource" && len(n.Args) == 1 {
				if strings.HasSuffix(where, "/podwatch/labelled.go") {
					add("", "pods", "list")
				} else if strings.HasSuffix(where, "/controlplane/status.go") {
					add("security.istio.io", "authorizationpolicies", "get", "patch/status")
					add("networking.istio.io", "serviceentries", "get", "patch/status")
					add("", "services", "get", "patch/status")
				} else if !strings.HasSuffix(where, "xds/kube/custom.go") {
					t.Errorf("%s: which resource is this?", where)
				}
			}
		case *ast.CompositeLit:
			if sel, ok := n.Type.(*ast.SelectorExpr); ok && fmt.Sprint(sel.X, ".", sel.Sel) == "resourcelock.LeaseLock" {
				add("coordination.k8s.io", "leases", "get", "create", "update")
			}
		}
		return true
	})
}
