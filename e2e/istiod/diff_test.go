//go:build istiod

package istiod

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/e2e/onehost"
	"github.com/warren-mesh/warren/xds/translate"
)

const (
	addressType = "type.googleapis.com/istio.workload.Address"
	policyType  = "type.googleapis.com/istio.security.Authorization"
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
	{line: `workload \S+: workload\.serviceAccount here "default", at istiod nothing`,
		why: "the API server of these tests lacks the admission plugin that fills the field in; both are read as default"},
	{line: `workload Kubernetes//Pod/app/unlabelled: workload\.authorizationPolicies here nothing, at istiod \["app/a-selector","app/dry","app/other-labels","istio-system/root-selector"\]`,
		why: "istiod attaches every policy with a selector to what has no labels: a bug"},
	{line: `workload Kubernetes/networking\.istio\.io/(ServiceEntry/app/(both-ways/10\.0\.3\.1|dns/[ab]\.example\.org)|WorkloadEntry/app/odd): workload\.authorizationPolicies here nothing, at istiod \["app/for-entries","app/for-vms"\]`,
		why: "istiod attaches every policy with a selector to what has no labels, and to ServiceEntries' endpoints by the labels of the ServiceEntry: a bug"},
	{line: `policy app/whole: scope here "NAMESPACE", at istiod "WORKLOAD_SELECTOR"`,
		why: "an empty selector selects the whole namespace, as in all of Kubernetes; sent as a selector's it depends on the list of each workload"},
	{line: `service a/twice\.example: service\.(addresses|name) here .*`, sometimes: true,
		why: "of two ServiceEntries of one age the first by name counts here; at istiod the order in which they came"},
	{line: `workload Kubernetes/networking\.istio\.io/ServiceEntry/a/(young|zz-old)/twice\.example: only (here|at istiod)`, sometimes: true,
		why: "as above"},
	{line: `service \S+: service\.visibility here "NAMESPACE", at istiod nothing`,
		why: "exportTo is honoured here; istiod has only the mesh's setting for it"},
	{line: `service \S+: service\.canonical here (nothing, at istiod true|true, at istiod nothing)`,
		why: "who may not be seen from elsewhere does not stand for a hostname there"},
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

	{line: `workload Kubernetes/networking\.istio\.io/ServiceEntry/app/mixed/10\.0\.1\.2: workload\.network( here "here", at istiod "there"|Gateway here nothing, at istiod \{"address":\{"address":"wAACCQ==","network":"there"\},"hboneMtlsPort":15008\})`,
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

// TestDifferential has both translate what xds/translate's own tests are made of, as an
// API server stores it, and compares everything that a proxy is sent, field by field.
func TestDifferential(t *testing.T) {
	files, err := filepath.Glob("../../xds/translate/testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no objects: %v", err)
	}
	i := bare(t)
	seen := make(map[string]bool)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			objects := i.load(t, file)
			defer i.unload(t, objects)
			i.compare(t, seen)
		})
	}
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
func (i *istiod) compare(t *testing.T, seen map[string]bool) {
	t.Helper()
	var lines, left []string
	deadline := time.Now().Add(30 * time.Second)
	for {
		theirs, err := i.fetch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ours, err := i.translated(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		lines, left = differences(ours, theirs), nil
		for _, line := range lines {
			if accept(line) == nil {
				left = append(left, line)
			}
		}
		// A change that is on its way looks like agreement: what is expected to differ must.
		if len(left) == 0 || time.Now().After(deadline) {
			t.Logf("%d resources here, %d at istiod, %d differences accepted", len(ours), len(theirs), len(lines)-len(left))
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
}

func accept(line string) *difference {
	for n := range accepted {
		if regexp.MustCompile("^(?:" + accepted[n].line + ")$").MatchString(line) {
			return &accepted[n]
		}
	}
	return nil
}

// fetch asks istiod for everything, as a proxy does.
func (i *istiod) fetch(ctx context.Context) (map[string]proto.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	roots := func() ([]byte, error) { return os.ReadFile(i.mesh.RootCert()) }
	token, err := os.ReadFile(i.mesh.Nodes[0].TokenFile())
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+i.mesh.ControlPlaneAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig(roots))),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return i.mesh.DialFabric(ctx, addr) }))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(
		metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(string(token)), "clusterid", "Kubernetes"))
	if err != nil {
		return nil, err
	}
	node := &corev3.Node{Id: "ztunnel~10.0.0.1~proxy-node1.istio-system~istio-system.svc.cluster.local", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"NAMESPACE": structpb.NewStringValue(rootNamespace), "NAME": structpb.NewStringValue("proxy-node1"), "CLUSTER_ID": structpb.NewStringValue("Kubernetes"),
	}}}
	all := make(map[string]proto.Message)
	for _, typeURL := range []string{addressType, policyType} {
		if err := stream.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: typeURL}); err != nil {
			return nil, err
		}
		r, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		for _, res := range r.GetResources() {
			var m proto.Message = &workloadapi.Address{}
			if typeURL == policyType {
				m = &security.Authorization{}
			}
			if err := proto.Unmarshal(res.GetResource().GetValue(), m); err != nil {
				return nil, err
			}
			all[kindOf(m)+" "+res.GetName()] = m
		}
	}
	return all, nil
}

func tlsConfig(roots func() ([]byte, error)) *tls.Config {
	return mtls.ToServer(roots, "istiod.istio-system.svc", "")
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

// translated is what Warren's control plane tells proxies about what the API server has
// now.
func (i *istiod) translated(ctx context.Context) (map[string]proto.Message, error) {
	var o translate.Objects
	err := errors.Join(
		list(ctx, i, "Pod", &o.Pods), list(ctx, i, "Namespace", &o.Namespaces), list(ctx, i, "Service", &o.Services), list(ctx, i, "EndpointSlice", &o.EndpointSlices),
		list(ctx, i, "Node", &o.Nodes), list(ctx, i, "AuthorizationPolicy", &o.AuthorizationPolicies), list(ctx, i, "PeerAuthentication", &o.PeerAuthentications),
		list(ctx, i, "ServiceEntry", &o.ServiceEntries), list(ctx, i, "WorkloadEntry", &o.WorkloadEntries), list(ctx, i, "Gateway", &o.Gateways),
		list(ctx, i, "GatewayClass", &o.GatewayClasses),
	)
	if err != nil {
		return nil, err
	}
	model, err := translate.All(o, translate.Options{DryRunPolicies: true})
	if err != nil {
		return nil, err
	}
	all := make(map[string]proto.Message)
	for _, w := range model.Workloads {
		all["workload "+w.ResourceName()] = &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w.ToProto()}}
	}
	for _, s := range model.Services {
		all["service "+s.ResourceName()] = &workloadapi.Address{Type: &workloadapi.Address_Service{Service: s.ToProto()}}
	}
	for _, p := range model.Policies {
		all["policy "+p.ResourceName()] = p.ToProto()
	}
	return all, nil
}

func list[T any](ctx context.Context, i *istiod, kind string, to *[]*T) error {
	l, err := i.dyn.Resource(kinds[kind].GroupVersionResource).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list %s: %w", kind, err)
	}
	for _, item := range l.Items {
		o := new(T)
		b, err := json.Marshal(item.Object)
		if err == nil {
			err = json.Unmarshal(b, o)
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", kind, item.GetName(), err)
		}
		*to = append(*to, o)
	}
	return nil
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
// are masked, and IPv4 in IPv6 is IPv4.
func normal(m proto.Message) proto.Message {
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
