package server

import (
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that is wrapped
	"google.golang.org/grpc/mem"
	pb "istio.io/api/security/v1alpha1"

	"github.com/warren-mesh/warren/ca/authority"
)

// maxRequest bounds a request as it is sent: a CSR, an identity, and room for what clients add.
const maxRequest = authority.MaxCSR + 16<<10

// tooLarge stands for the CSR of a request that was not decoded; it is answered as one of that size is.
var tooLarge = strings.Repeat("-", authority.MaxCSR+1)

// window is what a stream may send before it is read. It does not grow with the speed of a connection, to 16 MiB by
// default: who calls is not known by then.
const window = 64 << 10

// Bound keeps the server from holding much of what is not read yet, and from decoding requests for certificates that are
// larger than any that is granted. Their metadata, which is any tree of values, takes forty times as much memory as it has
// bytes.
func Bound() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(Codec()), grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(window)}
}

// Codec is what Bound has the server use.
func Codec() encoding.CodecV2 { return boundedCodec{encoding.GetCodecV2("proto")} }

type boundedCodec struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (c boundedCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if req, ok := v.(*pb.IstioCertificateRequest); ok && data.Len() > maxRequest {
		req.Reset()
		req.Csr = tooLarge
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}
