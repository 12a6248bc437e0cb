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
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// difference is one that is meant to be there.
type difference struct {
	line      string // matches whole lines of a comparison
	why       string
	sometimes bool // it depends on when objects were made
}

// accepted are the differences between what Warren's control plane and istiod tell a
// proxy about the same objects. A test that no longer sees one fails: it is to be taken
// out then.
var accepted = []difference{
	{line: `workload Kubernetes//Pod/app/unlabelled: workload\.authorizationPolicies here nothing, at istiod \["app/a-selector","app/dry","app/other-labels","istio-system/root-selector"\]`,
		why: "istiod attaches every policy with a selector to what has no labels: a bug"},
	{line: `workload Kubernetes/networking\.istio\.io/(ServiceEntry/app/(both-ways/10\.0\.3\.1|dns/[ab]\.example\.org)|WorkloadEntry/app/odd): workload\.authorizationPolicies here nothing, at istiod \["app/for-entries","app/for-vms"\]`,
		why: "istiod attaches every policy with a selector to what has no labels, and to ServiceEntries' endpoints by the labels of the ServiceEntry: a bug"},
	{line: `workload Kubernetes//Pod/app/host: aliases here \[\], at istiod \["net1/192\.168\.0\.1"\]`,
		why: "a pod on the host's network is not found by the node's address, which is not its own"},
	{line: `policy app/whole: scope here "NAMESPACE", at istiod "WORKLOAD_SELECTOR"`,
		why: "an empty selector selects the whole namespace, as in all of Kubernetes; sent as a selector's it depends on the list of each workload"},
	{line: `service a/twice\.example: (service\.addresses here \[\{"address":"(CgIABA=="\}\], at istiod \[\{"address":"CgIAAw|CgIAAw=="\}\], at istiod \[\{"address":"CgIABA)=="\}\]|service\.name here ("zz-old", at istiod "young"|"young", at istiod "zz-old")|aliases here \["/10\.2\.0\.[34]"\], at istiod \["/10\.2\.0\.[34]"\])`, sometimes: true,
		why: "of two ServiceEntries of one age the first by name counts here; at istiod the order in which they came"},
	{line: `workload Kubernetes/networking\.istio\.io/ServiceEntry/a/(young|zz-old)/twice\.example: only (here|at istiod)`, sometimes: true,
		why: "as above"},
	{line: `service (b/twice|app/(\*\.pass|private))\.example: service\.visibility here "NAMESPACE", at istiod nothing`,
		why: "exportTo is honoured here; istiod has only the mesh's setting for it"},
	{line: `service app/(\*\.pass|private)\.example: service\.canonical here nothing, at istiod true`,
		why: "who may not be seen from elsewhere does not stand for a hostname there"},
	{line: `service [abc]/(twice|young)\.example: service\.canonical here (true, at istiod nothing|nothing, at istiod true)`, sometimes: true,
		why: "as above: of those that may be seen the oldest counts, and of one age the first by name or the one that came first"},
	{line: `service (c/young|app/hidden)\.example: only at istiod`,
		why: "exportTo ~ is nobody"},
	{line: `service (c/(|\*x\.y|-a\.b|a\.\*\.b|a\.\.b|a/b|ünïcode\.example)|app/\*): only at istiod`,
		why: "not hostnames: proxies could not look them up, and a name with a slash could not be removed; Istio's own webhook refuses them"},
	{line: `workload Kubernetes/networking\.istio\.io/ServiceEntry/app/dns/\*(\.example\.org)?: only at istiod`,
		why: "a wildcard cannot be resolved, so nothing can be behind it"},
	{line: `service app/(also|inline)\.example\.com: only here`,
		why: "for one part that is wrong istiod leaves out the whole ServiceEntry; here only that part"},
	{line: `workload Kubernetes/networking\.istio\.io/ServiceEntry/app/inline/\S+: only here`,
		why: "as above"},
	{line: `workload Kubernetes(//Pod/app/pod|/networking\.istio\.io/WorkloadEntry/app/vm): workload\.services\.app/both\.example here nothing, at istiod \{"ports":\[\{"servicePort":80,"targetPort":(8088|8000)\}\]\}`,
		why: "a ServiceEntry has endpoints or a selector; of one with both, which Istio's webhook refuses, the endpoints count"},
	{line: `workload Kubernetes/networking\.istio\.io/WorkloadEntry/app/nowhere: only at istiod`,
		why: "without an address, a hostname or a network that has a gateway it cannot be reached"},

	{line: `workload Kubernetes/networking\.istio\.io/ServiceEntry/app/mixed/10\.0\.1\.2: (aliases here \["here/10\.0\.1\.2"\], at istiod \["there/10\.0\.1\.2"\]|workload\.network( here "here", at istiod "there"|Gateway here nothing, at istiod \{"address":\{"address":"wAACCQ==","network":"there"\},"hboneMtlsPort":15008\}))`,
		why: "istiod lets the network of one endpoint leak to those after it: a bug"},
	{line: `workload Kubernetes/networking\.istio\.io/WorkloadEntry/app/third: workload\.networkGateway here \{"address":\{"address":"wAACAw==","network":"third"\},"hboneMtlsPort":15008\}, at istiod nothing`,
		why: "a gateway of class istio-east-west that is labelled with another network leads to that network as well"},
	{line: `workload NetworkGateway/(third/192\.0\.2\.3/15008|there/fd00::9/15018): only here`,
		why: "as above; and every gateway of a network is known, not the first alone"},
	{line: `workload Kubernetes/networking\.istio\.io/WorkloadEntry/app/vm: workload\.networkGateway\.(address here \{"address":"wAACAQ==","network":"n2"\}, at istiod nothing|hostname here nothing, at istiod \{"hostname":"GW\.example\.com","namespace":"istio-system"\})`,
		why: "of several addresses of a gateway the first counts here, an IP rather than a name that has to be resolved"},
	{line: `workload NetworkGateway/n2/(192\.0\.2\.1/15009: only here|GW\.example\.com/15009: only at istiod|gw\.example\.com/15009: only here)`,
		why: "hostnames are in lower case here, and each address of a gateway is known"},
	{line: `service app/canary\.app\.svc\.cluster\.local: service\.weightedWaypoints here \[\{"destination":\{"hboneMtlsPort":15008,"hostname":\{"hostname":"wp\.app\.svc\.cluster\.local","namespace":"app"\}\},"weight":80\},\{"destination":\{"address":\{"address":"CgEJAg=="\},"hboneMtlsPort":15020\},"weight":20\}\], at istiod \[\{"destination":\{"hboneMtlsPort":15008,"hostname":\{"hostname":"wp\.app\.svc\.cluster\.local","namespace":"app"\}\},"weight":80\},\{"destination":\{"address":\{"address":"CgEJAg=="\},"hboneMtlsPort":15008\},"weight":20\}\]`,
		why: "of a gateway's addresses the first that is one counts, with its listener's port; istiod sends a waypoint that is nowhere, which proxies refuse"},
	{line: `service app/private\.example: service\.(waypoint here nothing, at istiod \{"hboneMtlsPort":15008,"hostname":\{"hostname":"shared\.infra\.svc\.cluster\.local","namespace":"infra"\}\}|ingressUseWaypoint here nothing, at istiod true)`,
		why: "a waypoint in another namespace could not see what is private to this one"},
	{line: `workload Kubernetes/networking\.istio\.io/ServiceEntry/app/private/10\.3\.0\.1: workload\.waypoint\.hboneMtlsPort here 15020, at istiod 15008`,
		why: "the port of the Gateway's HBONE listener counts; istiod says 15008 of every waypoint"},
	{line: `workload Kubernetes//Pod/app/is-a-managed-waypoint: workload\.waypoint here nothing, at istiod \{"address":\{"address":"CgEJAg=="\},"hboneMtlsPort":15008\}`,
		why: "a pod that says it is a waypoint has none before it, or connections went in a circle; istiod goes by the label with the Gateway's name alone, which pods of its own have as well"},
}

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
			i.compare(t, seen, here, there)
		})
	}
	for _, d := range accepted {
		if !seen[d.line] && !d.sometimes && !t.Failed() {
			t.Errorf("there is no difference %q any more: take it out", d.line)
		}
	}
	if !t.Failed() {
		everyField(t, here, there)
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

// load stores the objects of a file. What the API server does not take is left out: it
// exists nowhere.
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
		doc, err := yaml.Marshal(obj.Object)
		if err != nil {
			t.Fatal(err)
		}
		if err := i.Put(doc); err != nil {
			t.Logf("left out: %v", err)
			continue
		}
		stored = append(stored, obj)
	}
	return stored
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
		for _, c := range o.Object["spec"].(map[string]any)["containers"].([]any) {
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
func (i *istiod) compare(t *testing.T, seen map[string]bool, here, there filled) {
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
			if accept(line) == nil {
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
		if d := accept(line); d != nil {
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

func accept(line string) *difference {
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
