package file

import (
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
)

const podA = `apiVersion: v1
kind: Pod
metadata: {name: a, namespace: app, labels: {app: a}}
spec: {serviceAccountName: sa, nodeName: n1, containers: [{name: c, image: i}]}
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}]}
`

const policyA = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: app}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/x/sa/y]}}]}]
`

const entryA = `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: app}
spec: {hosts: [a.example], resolution: DNS}
`

const gatewayA = `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w, namespace: app}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: Hostname, value: w.app.svc.cluster.local}]}
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: GatewayClass
metadata: {name: istio-waypoint}
spec: {controllerName: istio.io/mesh-controller}
`

// alias is a document with a text of a size, repeated by aliases.
func alias(size, times int) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: &a " + strings.Repeat("x", size) + ", b: [" + strings.Repeat("*a,", times) + "]}\n"
}

func TestDecode(t *testing.T) {
	for name, c := range map[string]struct {
		file    string // default f.yaml
		in      string
		want    []string // keys
		unknown []string
		err     string // substring
	}{
		"one":                 {in: podA, want: []string{"Pod app/a"}},
		"documents":           {in: "# a comment\n---\n" + podA + "---\n---\n" + policyA, want: []string{"Pod app/a", "AuthorizationPolicy app/deny"}},
		"only a comment":      {in: "# nothing\n"},
		"default namespace":   {in: "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n", want: []string{"Service default/s"}},
		"cluster scope":       {in: "{apiVersion: v1, kind: Node, metadata: {name: n.example}}", want: []string{"Node n.example"}},
		"beta version":        {in: strings.Replace(policyA, "io/v1", "io/v1beta1", 1), want: []string{"AuthorizationPolicy app/deny"}},
		"list":                {in: "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: x}}\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: y}}\n", want: []string{"Namespace x"}, unknown: []string{"/v1, Kind=ConfigMap"}},
		"typed list":          {in: "apiVersion: v1\nkind: NamespaceList\nitems:\n- {metadata: {name: x}}\n- {metadata: {name: z}}\n", want: []string{"Namespace x", "Namespace z"}},
		"json":                {file: "f.json", in: `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"x"}} {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"y"}}`, want: []string{"Namespace x", "Namespace y"}},
		"unknown kind":        {in: "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {x: 1}}", unknown: []string{"apps/v1, Kind=Deployment"}},
		"same kind elsewhere": {in: "{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: d}}", unknown: []string{"serving.knative.dev/v1, Kind=Service"}},

		"request authentication": {in: "{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: r}}", unknown: []string{"security.istio.io/v1, Kind=RequestAuthentication"}},
		"anchor and alias":       {in: "apiVersion: v1\nkind: Namespace\nmetadata: {name: &n x, labels: {a: *n}}\n", want: []string{"Namespace x"}},
		"end of document":        {in: podA + "...\n---\n" + policyA, want: []string{"Pod app/a", "AuthorizationPolicy app/deny"}},

		"service entry":    {in: entryA, want: []string{"ServiceEntry app/e"}},
		"older versions":   {in: strings.Replace(entryA, "io/v1", "io/v1alpha3", 1) + "---\n" + strings.NewReplacer("ServiceEntry", "WorkloadEntry", "io/v1", "io/v1beta1", "hosts: [a.example], resolution: DNS", "address: 10.0.0.1").Replace(entryA), want: []string{"ServiceEntry app/e", "WorkloadEntry app/e"}},
		"gateways":         {in: gatewayA, want: []string{"Gateway app/w", "GatewayClass istio-waypoint"}},
		"Istio's gateway":  {in: "{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {name: g}, spec: {x: 1}}", unknown: []string{"networking.istio.io/v1, Kind=Gateway"}},
		"entry list":       {in: "apiVersion: networking.istio.io/v1\nkind: ServiceEntryList\nitems:\n- {metadata: {name: x}, spec: {hosts: [a.b]}}\n", want: []string{"ServiceEntry default/x"}},
		"entry misspelt":   {in: strings.Replace(entryA, "resolution", "resolutions", 1), err: "resolutions"},
		"entry enum":       {in: strings.Replace(entryA, "DNS", "DSN", 1), err: "DSN"},
		"gateway misspelt": {in: strings.Replace(gatewayA, "gatewayClassName", "gatewayClass", 1), err: `unknown field "spec.gatewayClass"`},
		"gateway version":  {in: strings.Replace(gatewayA, "k8s.io/v1", "k8s.io/v1alpha2", 1), err: "use gateway.networking.k8s.io/v1"},
		"class in a place": {in: "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: c, namespace: x}}", err: "has none"},

		// What would leave a policy out, or count another, without a word.
		"after the end":      {in: podA + "...\n" + policyA, err: "document 1: yaml: line"},
		"lines by CR":        {in: podA + "\r---\r" + strings.ReplaceAll(policyA, "\n", "\r"), err: "another document follows"},
		"on the separator":   {in: podA + "--- !!map\n" + policyA, err: "separator"},
		"kind misspelt":      {in: strings.Replace(policyA, "AuthorizationPolicy", "AuthorizationPolcy", 1), err: "there is no kind AuthorizationPolcy in security.istio.io/v1"},
		"kind in lower case": {in: strings.Replace(policyA, "AuthorizationPolicy", "authorizationpolicy", 1), err: "there is no kind"},
		"group misspelt":     {in: strings.Replace(policyA, "istio.io", "isto.io", 1), err: "there is no kind AuthorizationPolicy in security.isto.io/v1"},
		"without group":      {in: strings.Replace(policyA, "security.istio.io/", "", 1), err: "there is no kind AuthorizationPolicy in v1"},
		"two specs":          {file: "f.json", in: `{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"name":"x"},"spec":{"action":"DENY","rules":[{}]},"spec":{"rules":[{}]}}`, err: `"spec" comes twice`},
		"two lists":          {file: "f.json", in: `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"x"}}],"items":[]}`, err: `"items" comes twice`},
		"endless alias":      {in: "a: &a [*a]\n", err: "every alias written out"},

		"aliases, many files": {in: strings.Repeat("---\n"+alias(1<<16, 100), 3), err: "document 3: with every alias"},

		"empty":                  {in: " \n", err: "empty: delete the file"},
		"not yaml":               {in: "a: b: c", err: "document 1"},
		"not an object":          {in: "- a\n- b\n", err: "document 1: not a Kubernetes object"},
		"no kind":                {in: "metadata: {name: x}", err: "kind and apiVersion must be set"},
		"unknown field":          {in: strings.Replace(podA, "nodeName", "nodeNam", 1), err: `document 1: Pod: strict decoding error: unknown field "spec.nodeNam"`},
		"wrong case":             {in: strings.Replace(podA, "nodeName", "NodeName", 1), err: `unknown field "spec.NodeName"`},
		"unknown field in Istio": {in: strings.Replace(policyA, "from:", "form:", 1), err: "form"},
		"key twice":              {in: podA + "kind: Pod\n", err: `"kind" already set`},
		"bad value":              {in: strings.Replace(policyA, "DENY", "DNEY", 1), err: "DNEY"},
		"wrong version":          {in: strings.Replace(policyA, "io/v1", "io/v1alpha1", 1), err: "use security.istio.io/v1"},
		"second is bad":          {in: podA + "---\n" + strings.Replace(podA, "name: a,", "name: A_,", 1), err: "document 2: Pod app/A_: metadata.name"},
		"twice":                  {in: podA + "---\n" + podA, err: "Pod app/a: twice in this file"},
		"bad account":            {in: strings.Replace(podA, "serviceAccountName: sa", "serviceAccountName: x/y", 1), err: "spec.serviceAccountName"},
		"bad namespace":          {in: strings.Replace(podA, "namespace: app", "namespace: a/b", 1), err: "metadata.namespace"},
		"namespaced node":        {in: "{apiVersion: v1, kind: Node, metadata: {name: no1, namespace: x}}", err: "has none"},
		"bad json":               {file: "f.json", in: `{"apiVersion":`, err: "document 1"},
		"aliases of aliases":     {in: bomb(), err: "alias"},
		"too large":              {in: "#" + strings.Repeat("x", maxFileBytes), err: "larger than 8 MiB"},
		"too many":               {in: strings.Repeat("---\n{}\n", maxDocuments+1), err: "more than 20000 documents"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.file == "" {
				c.file = "f.yaml"
			}
			got, err := newDecoder().decode(c.file, []byte(c.in))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("err = %v, want %q in it", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var keys []string
			for _, o := range got.objects {
				keys = append(keys, o.key.String())
			}
			if d := cmp.Diff(c.want, keys) + cmp.Diff(c.unknown, got.unknown); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// bomb is a small document whose aliases stand for a huge one.
func bomb() string {
	var b strings.Builder
	b.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 9; i++ {
		a := string(rune('0' + i - 1))
		b.WriteString("a" + string(rune('0'+i)) + ": &a" + string(rune('0'+i)) + " [" + strings.Repeat("*a"+a+",", 9) + "*a" + a + "]\n")
	}
	return b.String()
}

func TestDecodeKeepsContents(t *testing.T) {
	got, err := newDecoder().decode("f.yaml", []byte(podA+"---\n"+policyA))
	if err != nil {
		t.Fatal(err)
	}
	pod := got.objects[0].obj.(*corev1.Pod)
	if pod.Spec.ServiceAccountName != "sa" || pod.Status.PodIPs[0].IP != "10.0.0.1" {
		t.Errorf("pod = %+v", pod)
	}
	policy := got.objects[1].obj.(*securityv1.AuthorizationPolicy)
	if p := policy.Spec.GetRules()[0].GetFrom()[0].GetSource().GetPrincipals(); len(p) != 1 {
		t.Errorf("principals = %v", p)
	}
}

// Everything that is decoded ends up among the objects.
func TestMergeTakesEveryKind(t *testing.T) {
	got, err := newDecoder().decode("f.yaml", []byte(podA+"---\n"+policyA+"---\n"+entryA+"---\n"+gatewayA+`---
{apiVersion: v1, kind: Namespace, metadata: {name: x}}
---
{apiVersion: v1, kind: Node, metadata: {name: x}}
---
{apiVersion: v1, kind: Service, metadata: {name: s}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s}, addressType: IPv4, endpoints: []}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: w}, spec: {address: 10.0.0.1}}
`))
	if err != nil {
		t.Fatal(err)
	}
	objects, problems := merge(map[string]*fileState{"f.yaml": {objects: got.objects}})
	v := reflect.ValueOf(objects)
	for i := range v.NumField() {
		if n := v.Field(i).Len(); n != 1 {
			t.Errorf("%d %s, want 1", n, v.Type().Field(i).Name)
		}
	}
	if len(problems) > 0 {
		t.Error(problems)
	}
	if a := objects.Gateways[0].Status.Addresses; len(a) != 1 || a[0].Value != "w.app.svc.cluster.local" {
		t.Errorf("status = %v", a)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("f.yaml", []byte(podA+"---\n"+policyA))
	f.Add("f.json", []byte(`{"apiVersion":"v1","kind":"List","items":[{"kind":"Pod"}]}`))
	f.Add("f.yaml", []byte("a: &a [*a]"))
	d := newDecoder()
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		got, err := d.decode(name, data)
		if err != nil && (got.objects != nil || got.unknown != nil) {
			t.Error("a file is taken in part")
		}
		for _, o := range got.objects {
			if o.key.name == "" || o.obj.GetName() != o.key.name || strings.ContainsAny(o.key.name+o.key.namespace, "/ \n") {
				t.Errorf("object %v has a name that was not checked", o.key)
			}
		}
	})
}
