package client

import (
	"errors"
	"fmt"
	"unicode/utf8"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
)

// codec reads responses by itself. The general decoder builds everything that a
// message has: two bytes on the wire can make an object of a hundred, and a
// message that is within its limit gigabytes. This one takes the fields that are
// used, and so many entries of each list as could be.
type codec struct {
	encoding.CodecV2
	breath func() *breath
}

// newCodec makes the codec. During a response that takes long it rests by what
// breath returns.
func newCodec(breath func() *breath) codec { return codec{encoding.GetCodecV2(proto.Name), breath} }

// Unmarshal is of encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*discovery.DeltaDiscoveryResponse)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	return decodeResponse(buf.ReadOnlyData(), r, maxResources, c.breath())
}

// decodeResponse fills r, which shares no memory with b. It takes at most limit
// resources, as many names of removed ones, and as many aliases; more aliases are left
// out.
func decodeResponse(b []byte, r *discovery.DeltaDiscoveryResponse, limit int, rest *breath) error {
	aliases := limit
	return eachBytes(b, func(num protowire.Number, v []byte) (err error) {
		switch num {
		case 2:
			if len(r.Resources) == limit {
				return fmt.Errorf("xds: a response of more than %d resources", limit)
			}
			rest.item()
			res := &discovery.Resource{}
			r.Resources = append(r.Resources, res)
			return decodeResource(v, res, &aliases)
		case 4:
			r.TypeUrl, err = text(v)
		case 5:
			r.Nonce, err = text(v)
		case 6:
			if len(r.RemovedResources) == limit {
				return fmt.Errorf("xds: a response that removes more than %d resources", limit)
			}
			var name string
			name, err = text(v)
			r.RemovedResources = append(r.RemovedResources, name)
		}
		return err
	})
}

func decodeResource(b []byte, r *discovery.Resource, aliases *int) error {
	return eachBytes(b, func(num protowire.Number, v []byte) (err error) {
		switch num {
		case 1:
			r.Version, err = text(v)
		case 2:
			if r.Resource == nil {
				r.Resource = &anypb.Any{}
			}
			return decodeAny(v, r.Resource)
		case 3:
			r.Name, err = text(v)
		case 4:
			if *aliases--; *aliases < 0 {
				return nil
			}
			var alias string
			alias, err = text(v)
			r.Aliases = append(r.Aliases, alias)
		}
		return err
	})
}

func decodeAny(b []byte, a *anypb.Any) error {
	return eachBytes(b, func(num protowire.Number, v []byte) (err error) {
		switch num {
		case 1:
			a.TypeUrl, err = text(v)
		case 2:
			a.Value = append([]byte(nil), v...)
		}
		return err
	})
}

// eachBytes calls f for every field of a message that has a length; the others, of
// which none is used, are passed over.
func eachBytes(b []byte, f func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(num, v); err != nil {
			return err
		}
	}
	return nil
}

var errText = errors.New("xds: a text that is not UTF-8")

func text(v []byte) (string, error) {
	if !utf8.Valid(v) {
		return "", errText
	}
	return string(v), nil
}
