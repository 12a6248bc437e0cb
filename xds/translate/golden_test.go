package translate

import (
	"bytes"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"istio.io/istio/pkg/workloadapi"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/warren-mesh/warren/xds/workload"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden translates testdata/*.yaml and compares with the JSON beside it, which is
// the protos that proxies are sent and the problems that are reported.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no inputs: %v", err)
	}
	opts := map[string]Options{
		"pods":     {AssumeRedirected: true, TrustDomain: "example.org", ClusterID: "c1"},
		"policies": {DryRunPolicies: true},
	}
	for _, in := range inputs {
		name := strings.TrimSuffix(filepath.Base(in), ".yaml")
		t.Run(name, func(t *testing.T) {
			objects := load(t, in)
			got := render(t, objects, opts[name])
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("(-want +got; go test -update writes it anew):\n%s", d)
			}
			shuffle(&objects)
			if d := cmp.Diff(string(got), string(render(t, objects, opts[name]))); d != "" {
				t.Errorf("the order of the input shows in the output:\n%s", d)
			}
		})
	}
}

func render(t *testing.T, o Objects, opts Options) []byte {
	t.Helper()
	p, err := All(o, opts)
	if err != nil {
		t.Fatal(err)
	}
	checkTaken(t, p)
	out := struct {
		Workloads, Services, Policies []json.RawMessage
		Problems                      []string
	}{}
	add := func(to *[]json.RawMessage, m proto.Message) {
		b, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		*to = append(*to, b)
	}
	for _, w := range p.Workloads {
		add(&out.Workloads, w.ToProto())
	}
	for _, s := range p.Services {
		add(&out.Services, s.ToProto())
	}
	for _, a := range p.Policies {
		add(&out.Policies, a.ToProto())
	}
	for _, problem := range p.Problems {
		out.Problems = append(out.Problems, problem.String())
	}
	raw, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, raw, "", " "); err != nil {
		t.Fatal(err)
	}
	return append(indented.Bytes(), '\n')
}

// checkTaken fails unless proxies take everything of a result, each thing under its name.
func checkTaken(t testing.TB, r Result) {
	t.Helper()
	seen := make(map[string]bool)
	check := func(name string, err error) {
		if err != nil {
			t.Errorf("%s would be refused: %v", name, err)
		}
		if seen[name] {
			t.Errorf("%s is there twice", name)
		}
		seen[name] = true
	}
	for _, w := range r.Workloads {
		sent := w.ToProto()
		got, err := workload.WorkloadFromProto(sent)
		check(w.ResourceName(), err)
		if err == nil && !proto.Equal(sent, withoutDefaults(w, got.ToProto())) {
			t.Errorf("%s arrives as %v, was %v", w.UID, got.ToProto(), sent)
		}
	}
	for _, s := range r.Services {
		sent := s.ToProto()
		got, err := workload.ServiceFromProto(sent)
		check(s.ResourceName(), err)
		if err == nil && !proto.Equal(sent, got.ToProto()) {
			t.Errorf("%s arrives as %v, was %v", s.ResourceName(), got.ToProto(), sent)
		}
	}
	for _, p := range r.Policies {
		_, err := workload.PolicyFromProto(p.ToProto())
		check("policy "+p.ResourceName(), err)
	}
}

// withoutDefaults takes out what a proxy fills in.
func withoutDefaults(w *workload.Workload, p *workloadapi.Workload) *workloadapi.Workload {
	if w.ServiceAccount == "" {
		p.ServiceAccount = ""
	}
	if w.ClusterID == "" {
		p.ClusterId = ""
	}
	return p
}

func shuffle(o *Objects) {
	mix(o.Pods)
	mix(o.Services)
	mix(o.EndpointSlices)
	mix(o.AuthorizationPolicies)
	mix(o.PeerAuthentications)
	mix(o.ServiceEntries)
	mix(o.WorkloadEntries)
	mix(o.Gateways)
	mix(o.Namespaces)
}

func mix[T any](list []T) {
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}

// load reads the objects of a file. (The feeder does this for real, with its checks.)
func load(t testing.TB, path string) Objects {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parseObjects(t, string(data))
}

func parseObjects(t testing.TB, text string) Objects {
	t.Helper()
	var o Objects
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &meta); err != nil {
			t.Fatal(err)
		}
		var err error
		switch meta.Kind {
		case "Pod":
			err = into(doc, &o.Pods)
		case "Namespace":
			err = into(doc, &o.Namespaces)
		case "Node":
			err = into(doc, &o.Nodes)
		case "Service":
			err = into(doc, &o.Services)
		case "EndpointSlice":
			err = into(doc, &o.EndpointSlices)
		case "AuthorizationPolicy":
			err = into(doc, &o.AuthorizationPolicies)
		case "PeerAuthentication":
			err = into(doc, &o.PeerAuthentications)
		case "ServiceEntry":
			err = into(doc, &o.ServiceEntries)
		case "WorkloadEntry":
			err = into(doc, &o.WorkloadEntries)
		case "Gateway":
			err = into(doc, &o.Gateways)
		case "GatewayClass":
			err = into(doc, &o.GatewayClasses)
		default:
			t.Fatalf("kind %q in test data", meta.Kind)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return o
}

type loadable interface {
	corev1.Pod | corev1.Namespace | corev1.Node | corev1.Service | discoveryv1.EndpointSlice |
		securityv1.AuthorizationPolicy | securityv1.PeerAuthentication |
		networkingv1.ServiceEntry | networkingv1.WorkloadEntry | gatewayv1.Gateway | gatewayv1.GatewayClass
}

func into[T loadable](doc string, to *[]*T) error {
	o := new(T)
	*to = append(*to, o)
	return yaml.Unmarshal([]byte(doc), o)
}
