//go:build istiod

package istiod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/xds/server"
	"github.com/warren-mesh/warren/xds/translate"
)

// said is what a control plane tells a proxy.
type said struct {
	resources map[string]proto.Message // by kind and name
	aliases   map[string][]string      // of those that have any, sorted
}

// says asks istiod for everything, as a proxy does.
func (i *istiod) says(ctx context.Context) (said, error) {
	roots := func() ([]byte, error) { return os.ReadFile(i.mesh.RootCert()) }
	token, err := os.ReadFile(i.mesh.Nodes[0].TokenFile())
	if err != nil {
		return said{}, err
	}
	conn, err := grpc.NewClient("passthrough:///"+i.mesh.ControlPlaneAddr().String(),
		grpc.WithTransportCredentials(credentials.NewTLS(mtls.ToServer(roots, "istiod.istio-system.svc", ""))),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return i.mesh.DialFabric(ctx, addr) }))
	if err != nil {
		return said{}, err
	}
	defer conn.Close()
	return askEverything(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(string(token)), "clusterid", i.clusterID()), conn, i.clusterID())
}

// weSay asks Warren's server, which is given what the API server has now.
func (i *istiod) weSay(t *testing.T) (said, error) {
	model, err := i.translated(t.Context())
	if err != nil {
		return said{}, err
	}
	snapshot, err := server.NewSnapshot(nil, server.Model{Workloads: model.Workloads, Services: model.Services, Policies: model.Policies})
	if err != nil {
		return said{}, err
	}
	s := server.New(server.Config{Authenticate: func(context.Context) (string, error) { return "test", nil }, Log: slog.New(slog.DiscardHandler)})
	s.SetSnapshot(snapshot)
	g := grpc.NewServer(server.ServerOptions()...)
	s.Register(g)
	l := bufconn.Listen(1 << 20)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	defer func() {
		s.Shutdown()
		g.Stop()
		s.Wait()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient("passthrough:///here", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		return said{}, err
	}
	defer conn.Close()
	return askEverything(t.Context(), conn, i.clusterID())
}

// askEverything asks as a proxy does that follows everything, and then for each address
// again as one does on demand: only that one is told aliases.
func askEverything(ctx context.Context, conn grpc.ClientConnInterface, cluster string) (said, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client := discovery.NewAggregatedDiscoveryServiceClient(conn)
	all := said{resources: make(map[string]proto.Message), aliases: make(map[string][]string)}
	var names []string
	err := exchange(ctx, client, cluster, []*discovery.DeltaDiscoveryRequest{{TypeUrl: server.AddressType}, {TypeUrl: server.AuthorizationType}}, func(r *discovery.Resource) error {
		m, err := decode(r)
		all.resources[kindOf(m)+" "+r.GetName()] = m
		if kindOf(m) != "policy" {
			names = append(names, r.GetName())
		}
		return err
	})
	if err != nil || len(names) == 0 {
		return all, err
	}
	return all, exchange(ctx, client, cluster, []*discovery.DeltaDiscoveryRequest{{TypeUrl: server.AddressType, ResourceNamesSubscribe: names}}, func(r *discovery.Resource) error {
		m, err := decode(r)
		aliases := slices.Clone(r.GetAliases())
		slices.Sort(aliases)
		all.aliases[kindOf(m)+" "+r.GetName()] = slices.Compact(aliases)
		return err
	})
}

// exchange makes requests on a stream, each of which has one answer; news of what was
// asked for before may come between.
func exchange(ctx context.Context, client discovery.AggregatedDiscoveryServiceClient, cluster string, requests []*discovery.DeltaDiscoveryRequest, got func(*discovery.Resource) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	node := &corev3.Node{Id: "ztunnel~10.0.0.1~proxy-node1.istio-system~istio-system.svc.cluster.local", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"NAMESPACE": structpb.NewStringValue(rootNamespace), "NAME": structpb.NewStringValue("proxy-node1"), "CLUSTER_ID": structpb.NewStringValue(cluster),
	}}}
	for _, request := range requests {
		request.Node = node
		if err := stream.Send(request); err != nil {
			return err
		}
		for answered := false; !answered; {
			response, err := stream.Recv()
			if err != nil {
				return err
			}
			answered = response.GetTypeUrl() == request.GetTypeUrl()
			for _, r := range response.GetResources() {
				if err := got(r); err != nil {
					return fmt.Errorf("%s: %w", r.GetName(), err)
				}
			}
		}
	}
	return nil
}

func decode(r *discovery.Resource) (proto.Message, error) {
	var m proto.Message = &workloadapi.Address{}
	if r.GetResource().GetTypeUrl() == server.AuthorizationType {
		m = &security.Authorization{}
	}
	return m, r.GetResource().UnmarshalTo(m)
}

// translated is what Warren's control plane makes of what the API server has now.
func (i *istiod) translated(ctx context.Context) (translate.Result, error) {
	var o translate.Objects
	err := errors.Join(
		list(ctx, i, "Pod", &o.Pods), list(ctx, i, "Namespace", &o.Namespaces), list(ctx, i, "Service", &o.Services), list(ctx, i, "EndpointSlice", &o.EndpointSlices),
		list(ctx, i, "Node", &o.Nodes), list(ctx, i, "AuthorizationPolicy", &o.AuthorizationPolicies), list(ctx, i, "PeerAuthentication", &o.PeerAuthentications),
		list(ctx, i, "ServiceEntry", &o.ServiceEntries), list(ctx, i, "WorkloadEntry", &o.WorkloadEntries), list(ctx, i, "Gateway", &o.Gateways),
		list(ctx, i, "GatewayClass", &o.GatewayClasses),
	)
	if err != nil {
		return translate.Result{}, err
	}
	return translate.All(o, translate.Options{ClusterID: i.clusterID(), DryRunPolicies: true})
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

// otherAliases has a line for each resource of both with different aliases.
func otherAliases(ours, theirs said) (lines []string) {
	for _, name := range slices.Sorted(maps.Keys(ours.resources)) {
		if _, both := theirs.resources[name]; !both {
			continue
		}
		if a, b := ours.aliases[name], theirs.aliases[name]; !slices.Equal(a, b) {
			lines = append(lines, fmt.Sprintf("%s: aliases here %q, at istiod %q", name, a, b))
		}
	}
	return lines
}

// filled are the fields that had something in them.
type filled map[protoreflect.FullName]bool

func (f filled) add(s said) {
	for _, m := range s.resources {
		f.message(m.ProtoReflect())
	}
}

func (f filled) message(m protoreflect.Message) {
	m.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		f[d.FullName()] = true
		switch {
		case d.IsMap() && d.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { f.message(v.Message()); return true })
		case d.IsMap() || d.Message() == nil:
		case d.IsList():
			for n := range v.List().Len() {
				f.message(v.List().Get(n).Message())
			}
		default:
			f.message(v.Message())
		}
		return true
	})
}

// unsaid are the fields that nothing is compared in, and why.
var unsaid = map[protoreflect.FullName]string{
	"istio.workload.Workload.trust_domain": "the default is not said, and istiod has one for the whole mesh; xds/translate tests others",

	"istio.workload.Workload.extensions":      "neither fills it in, and no proxy reads it",
	"istio.workload.Service.extensions":       "as above",
	"istio.security.Authorization.extensions": "as above",
	"istio.security.Match.extensions":         "as above, and proxies refuse a policy that has one",
	"istio.workload.Extension.name":           "as above",
	"istio.workload.Extension.config":         "as above",
}

// everyField has each field of what proxies are told be one that objects here fill in,
// at both: or a difference in it would not be seen.
func everyField(t *testing.T, here, there filled) {
	t.Helper()
	known := make(filled)
	known.fieldsOf((&workloadapi.Address{}).ProtoReflect().Descriptor())
	known.fieldsOf((&security.Authorization{}).ProtoReflect().Descriptor())
	for _, name := range slices.Sorted(maps.Keys(known)) {
		_, excepted := unsaid[name]
		switch both := here[name] && there[name]; {
		case both && excepted:
			t.Errorf("%s is compared now: take it out of what is not", name)
		case !both && !excepted:
			t.Errorf("%s is never compared: filled in here %v, at istiod %v", name, here[name], there[name])
		}
	}
	for name := range unsaid {
		if !known[name] {
			t.Errorf("there is no field %s", name)
		}
	}
}

func (f filled) fieldsOf(d protoreflect.MessageDescriptor) {
	for n := range d.Fields().Len() {
		field := d.Fields().Get(n)
		if f[field.FullName()] {
			continue
		}
		f[field.FullName()] = true
		if field.IsMap() {
			field = field.MapValue()
		}
		if m := field.Message(); m != nil && !strings.HasPrefix(string(m.FullName()), "google.protobuf.") {
			f.fieldsOf(m)
		}
	}
}
