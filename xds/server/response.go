package server

import (
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Numbers of fields.
const (
	fieldResources protowire.Number = 2 // of DeltaDiscoveryResponse
	fieldNonce     protowire.Number = 5
	fieldAliases   protowire.Number = 4 // of Resource
)

// resource is one as it is sent. It is encoded once, and these bytes are in every response
// that has it: gRPC keeps a response until the client has taken it, and when a control
// plane comes back all clients want everything at the same time.
type resource struct {
	name, version string
	aliases       []string
	field         mem.Buffer // of a response, without the aliases
	head          int        // bytes of its tag and length
}

// newResource encodes a resource.
func newResource(name, version, typeURL string, value []byte) (*resource, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&discovery.Resource{
		Name: name, Version: version, Resource: &anypb.Any{TypeUrl: typeURL, Value: value},
	})
	if err != nil {
		return nil, err
	}
	field := protowire.AppendTag(make([]byte, 0, len(body)+protowire.SizeBytes(len(body))), fieldResources, protowire.BytesType)
	field = protowire.AppendBytes(field, body)
	return &resource{name: name, version: version, field: mem.SliceBuffer(field), head: len(field) - len(body)}, nil
}

// called returns the resource with other names.
func (r *resource) called(aliases []string) *resource {
	if len(aliases) == 0 {
		return r
	}
	other := *r
	other.aliases = aliases
	return &other
}

// appendTo appends the resource's field.
func (r *resource) appendTo(out mem.BufferSlice) mem.BufferSlice {
	if len(r.aliases) == 0 {
		return append(out, r.field)
	}
	var aliases []byte
	for _, a := range r.aliases {
		aliases = protowire.AppendString(protowire.AppendTag(aliases, fieldAliases, protowire.BytesType), a)
	}
	body := r.field.ReadOnlyData()[r.head:]
	head := protowire.AppendTag(nil, fieldResources, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(aliases)+len(body)))
	return append(out, mem.SliceBuffer(append(head, aliases...)), mem.SliceBuffer(body))
}

// response is a DeltaDiscoveryResponse.
type response struct {
	kind           kind
	version, nonce string
	resources      []*resource
	removed        []string
	end            func() // once gRPC has let go of it; may be nil
}

// marshal encodes the response, of which only what no other has is new. The nonce is last:
// who answers it has taken the rest.
func (r *response) marshal() (mem.BufferSlice, error) {
	rest, err := proto.Marshal(&discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: r.version, TypeUrl: r.kind.typeURL(), RemovedResources: r.removed,
	})
	if err != nil {
		return nil, err
	}
	out := make(mem.BufferSlice, 0, 2+len(r.resources))
	out = append(out, mem.SliceBuffer(rest))
	for _, res := range r.resources {
		out = res.appendTo(out)
	}
	nonce := protowire.AppendString(protowire.AppendTag(nil, fieldNonce, protowire.BytesType), r.nonce)
	return append(out, lastBuffer(nonce, r.end)), nil
}

// What a response costs in memory while it is on its way: a reference to each resource, and
// two new pieces where it has aliases.
const (
	referenceSize = 24
	aliasedSize   = 128
)

// size is what the response takes while it is on its way, besides what others share.
func (r *response) size() int64 {
	n := len(r.resources) * referenceSize
	for _, res := range r.resources {
		if len(res.aliases) > 0 {
			n += aliasedSize
		}
		for _, a := range res.aliases {
			n += len(a)
		}
	}
	for _, name := range r.removed {
		n += len(name)
	}
	return int64(n)
}

// Codec has gRPC send responses without copies. Everything else under does.
func Codec(under encoding.CodecV2) encoding.CodecV2 { return codec{under} }

type codec struct{ encoding.CodecV2 }

// Marshal is of encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(*response); ok {
		return r.marshal()
	}
	return c.CodecV2.Marshal(v)
}
