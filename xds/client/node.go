package client

import (
	"cmp"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// proto is the node as Istio's control plane expects a ztunnel to present itself;
// its id has four parts between tildes and the first selects what is served.
func (n *Node) proto() (*corev3.Node, error) {
	ip := cmp.Or(n.IP, "1.1.1.1")
	fields := map[string]any{}
	for k, v := range n.Metadata {
		fields[k] = v
	}
	fields["NAME"] = n.PodName
	fields["NAMESPACE"] = n.Namespace
	fields["INSTANCE_IPS"] = ip
	fields["NODE_NAME"] = n.NodeName
	if n.ClusterID != "" {
		fields["CLUSTER_ID"] = n.ClusterID
	}
	meta := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for k, v := range fields {
		value, err := metadataValue(v)
		if err != nil {
			return nil, fmt.Errorf("xds: node metadata %s: %w", k, err)
		}
		meta.Fields[k] = value
	}
	return &corev3.Node{
		Id:       fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.cluster.local", ip, n.PodName, n.Namespace, n.Namespace),
		Metadata: meta,
	}, nil
}

func metadataValue(v any) (*structpb.Value, error) { return structpb.NewValue(v) }
