package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	apinetworking "istio.io/api/networking/v1alpha3"
	apisecurity "istio.io/api/security/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Bounds on one file. A folder that needs more is a cluster that needs an API server.
const (
	maxFileBytes = 8 << 20
	maxDocuments = 20_000
)

// object is one decoded object under the identity that Kubernetes gives it.
type object struct {
	key key
	obj metav1.Object
}

type key struct{ kind, namespace, name string }

func (k key) String() string {
	if k.namespace == "" {
		return k.kind + " " + k.name
	}
	return k.kind + " " + k.namespace + "/" + k.name
}

// decoder turns the bytes of a file into objects. It holds no state between files.
type decoder struct{ strict runtime.Decoder }

// newDecoder knows the kinds that the mesh is made from and no other.
func newDecoder() *decoder {
	scheme := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(scheme))
	utilruntime.Must(discoveryv1.AddToScheme(scheme))
	utilruntime.Must(securityv1.AddToScheme(scheme))
	utilruntime.Must(networkingv1.AddToScheme(scheme))
	utilruntime.Must(gatewayv1.Install(scheme))
	codecs := serializer.NewCodecFactory(scheme, serializer.EnableStrict)
	return &decoder{strict: codecs.UniversalDeserializer()}
}

// versions lists the kinds that are read, by group, with the versions that mean the
// same. A known kind in another version is an error rather than an unknown kind: a
// policy must not be left out for a typing mistake.
func versions(gk schema.GroupKind) (known []string) {
	switch gk.String() {
	case "Pod", "Namespace", "Service", "Node", "EndpointSlice.discovery.k8s.io":
		return []string{"v1"}
	case "AuthorizationPolicy.security.istio.io", "PeerAuthentication.security.istio.io":
		return []string{"v1", "v1beta1"}
	case "ServiceEntry.networking.istio.io", "WorkloadEntry.networking.istio.io":
		return []string{"v1", "v1beta1", "v1alpha3"}
	case "Gateway.gateway.networking.k8s.io", "GatewayClass.gateway.networking.k8s.io":
		return []string{"v1", "v1beta1"}
	}
	return nil
}

// mistaken reports a kind that nobody reads and that was hardly meant to be one of those: a
// typing mistake in the name of a policy would leave it out, where an API server would refuse it.
func mistaken(gk schema.GroupKind) bool {
	switch {
	case gk.Group == securityv1.GroupName:
		return gk.Kind != "RequestAuthentication" // for layer 7
	case gk.Kind == "AuthorizationPolicy" || gk.Kind == "PeerAuthentication":
		return true
	}
	return false
}

// decoded is what one file holds.
type decoded struct {
	objects []object
	unknown []string // kinds that nobody here reads, as group/version, Kind=kind
}

// decode reads a whole file or fails; the error says which document is wrong.
func (d *decoder) decode(name string, data []byte) (decoded, error) {
	if len(data) > maxFileBytes {
		return decoded{}, fmt.Errorf("larger than %d MiB: split it", maxFileBytes>>20)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return decoded{}, errors.New("empty: delete the file to remove its objects, and replace a file by renaming a complete one onto it")
	}
	documents, err := split(name, data)
	if err != nil {
		return decoded{}, err
	}
	c := &collector{decoder: d, seen: make(map[key]bool)}
	for i, doc := range documents {
		if err := c.document(doc); err != nil {
			return decoded{}, fmt.Errorf("document %d: %w", i+1, err)
		}
	}
	return c.out, nil
}

// split returns the JSON of every document that is not empty.
func split(name string, data []byte) (documents []json.RawMessage, err error) {
	next := yamlDocuments(data)
	if strings.HasSuffix(name, ".json") {
		next = jsonDocuments(data)
	}
	for n := 1; ; n++ {
		doc, err := next()
		if errors.Is(err, io.EOF) {
			return documents, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if n > maxDocuments {
			return nil, fmt.Errorf("more than %d documents: split the file", maxDocuments)
		}
		if string(doc) != "null" {
			documents = append(documents, doc)
		}
	}
}

func jsonDocuments(data []byte) func() (json.RawMessage, error) {
	r := json.NewDecoder(bytes.NewReader(data))
	return func() (json.RawMessage, error) {
		var doc json.RawMessage
		err := r.Decode(&doc)
		return doc, err
	}
}

// collector gathers the objects of one file.
type collector struct {
	*decoder
	out  decoded
	seen map[key]bool
}

func (c *collector) document(doc json.RawMessage) error {
	fields, meta, err := members(doc)
	if err != nil {
		return fmt.Errorf("not a Kubernetes object: %w", err)
	}
	var items []json.RawMessage
	if strings.HasSuffix(meta.Kind, "List") && fields["items"] != nil {
		if err := json.Unmarshal(fields["items"], &items); err != nil {
			return fmt.Errorf("items: %w", err)
		}
	}
	if items == nil {
		return c.object(meta, fields)
	}
	if len(c.out.objects)+len(items) > maxDocuments {
		return fmt.Errorf("more than %d objects: split the file", maxDocuments)
	}
	for i, item := range items {
		fields, itemMeta, err := members(item)
		if err != nil {
			return fmt.Errorf("items[%d]: not a Kubernetes object: %w", i, err)
		}
		if itemMeta.Kind == "" && meta.Kind != "List" { // as an API server writes the items of a PodList
			itemMeta = metav1.TypeMeta{Kind: strings.TrimSuffix(meta.Kind, "List"), APIVersion: meta.APIVersion}
		}
		if err := c.object(itemMeta, fields); err != nil {
			return fmt.Errorf("items[%d]: %w", i, err)
		}
	}
	return nil
}

// members splits a JSON object. A member that comes twice is an error: of two specs the
// last would count, without a word.
func members(doc json.RawMessage) (map[string]json.RawMessage, metav1.TypeMeta, error) {
	var meta metav1.TypeMeta
	r := json.NewDecoder(bytes.NewReader(doc))
	if t, err := r.Token(); err != nil || t != json.Delim('{') {
		return nil, meta, errors.Join(errors.New("want {…}"), err)
	}
	fields := make(map[string]json.RawMessage)
	for r.More() {
		t, err := r.Token()
		if err != nil {
			return nil, meta, err
		}
		name, _ := t.(string) // a member's name is nothing else
		if _, twice := fields[name]; twice {
			return nil, meta, fmt.Errorf("%.100q comes twice", name)
		}
		var value json.RawMessage
		if err := r.Decode(&value); err != nil {
			return nil, meta, err
		}
		fields[name] = value
	}
	for name, to := range map[string]*string{"kind": &meta.Kind, "apiVersion": &meta.APIVersion} {
		if v := fields[name]; v != nil {
			if err := json.Unmarshal(v, to); err != nil {
				return nil, meta, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return fields, meta, nil
}

func (c *collector) object(meta metav1.TypeMeta, fields map[string]json.RawMessage) error {
	if meta.Kind == "" || meta.APIVersion == "" {
		return errors.New("kind and apiVersion must be set")
	}
	gv, err := schema.ParseGroupVersion(meta.APIVersion)
	if err != nil {
		return fmt.Errorf("apiVersion: %w", err)
	}
	gvk := gv.WithKind(meta.Kind)
	known := versions(gvk.GroupKind())
	if known == nil && mistaken(gvk.GroupKind()) {
		return fmt.Errorf("there is no kind %s in %s: AuthorizationPolicy and PeerAuthentication are in %s", meta.Kind, gv, securityv1.GroupName)
	}
	if known == nil {
		c.out.unknown = append(c.out.unknown, gvk.String())
		return nil
	}
	obj, err := c.typed(gvk, known, fields)
	if err != nil {
		return fmt.Errorf("%s: %w", meta.Kind, err)
	}
	k, err := identify(meta.Kind, obj)
	if err != nil {
		return err
	}
	if c.seen[k] {
		return fmt.Errorf("%s: twice in this file", k)
	}
	c.seen[k] = true
	c.out.objects = append(c.out.objects, object{key: k, obj: obj})
	return nil
}

// typed decodes one object strictly: a field that its type does not have is an error.
func (c *collector) typed(gvk schema.GroupVersionKind, known []string, fields map[string]json.RawMessage) (metav1.Object, error) {
	found := false
	for _, v := range known {
		found = found || v == gvk.Version
	}
	if !found {
		return nil, fmt.Errorf("apiVersion %s is not read here: use %s", gvk.GroupVersion(), schema.GroupVersion{Group: gvk.Group, Version: known[0]})
	}
	// The versions listed together are equal field by field, and items of a typed
	// list carry none: write down the one that the scheme knows.
	gvk.Version = known[0]
	for field, value := range map[string]string{"apiVersion": gvk.GroupVersion().String(), "kind": gvk.Kind} {
		quoted, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		fields[field] = quoted
	}
	doc, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	decoded, _, err := c.strict.Decode(doc, nil, nil)
	if err != nil {
		return nil, err
	}
	obj, ok := decoded.(metav1.Object)
	if !ok {
		return nil, fmt.Errorf("%s has no metadata", gvk.Kind)
	}
	return obj, strictSpec(obj, fields["spec"])
}

// strictSpec decodes an Istio spec once more: the generated types skip what they do
// not know, and a rule whose "form:" was meant to be "from:" would match everybody.
func strictSpec(obj metav1.Object, spec json.RawMessage) error {
	var into proto.Message
	switch obj.(type) {
	case *securityv1.AuthorizationPolicy:
		into = &apisecurity.AuthorizationPolicy{}
	case *securityv1.PeerAuthentication:
		into = &apisecurity.PeerAuthentication{}
	case *networkingv1.ServiceEntry:
		into = &apinetworking.ServiceEntry{}
	case *networkingv1.WorkloadEntry:
		into = &apinetworking.WorkloadEntry{}
	default:
		return nil
	}
	if len(spec) == 0 {
		return nil
	}
	if err := protojson.Unmarshal(spec, into); err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	return nil
}
