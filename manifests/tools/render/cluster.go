package render

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
)

// cluster is what the function lookup of templates finds.
type cluster struct{ client dynamic.Interface }

// clustered are kinds without a namespace that charts ask for.
var clustered = map[string]bool{"Namespace": true, "Node": true, "ClusterRole": true, "ClusterRoleBinding": true, "CustomResourceDefinition": true}

// listed are kinds that may be asked for when none is there.
func listed() map[schema.GroupVersionResource]string {
	return map[schema.GroupVersionResource]string{
		{Group: "apps", Version: "v1", Resource: "daemonsets"}: "DaemonSetList",
		{Version: "v1", Resource: "namespaces"}:                "NamespaceList",
	}
}

func newCluster(existing []byte) (*cluster, error) {
	var objects []runtime.Object
	d := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(existing), 4096)
	for {
		u := &unstructured.Unstructured{}
		err := d.Decode(&u.Object)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("existing objects: %w", err)
		}
		if len(u.Object) > 0 {
			objects = append(objects, u)
		}
	}
	return &cluster{fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), listed(), objects...)}, nil
}

// GetClientFor implements engine.ClientProvider.
func (c *cluster) GetClientFor(apiVersion, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		return nil, false, err
	}
	return c.client.Resource(gv.WithResource(strings.ToLower(kind) + "s")), !clustered[kind], nil
}
