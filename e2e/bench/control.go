package bench

import (
	"context"
	"fmt"
	"net"
	"os"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/warren-mesh/warren/ca/mtls"
)

// controlType is what a control asks for: the changes alone.
const controlType = "bench/control"

// window is gRPC's, fixed: else each message is a reason to measure the path.
const window = 1 << 20

// startControls starts on each node, beside its proxy, a program that follows the
// control plane, answers as a proxy does, and does nothing else. What traffic notices
// while these are told of changes is not the proxies' doing.
func (b *bed) startControls() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, n := range b.Nodes {
		if err := n.Run("control", self, []string{"GOMAXPROCS=1"}, "-follow", b.ControlPlaneAddr().String(), "-root", b.RootCert()); err != nil {
			return err
		}
	}
	return nil
}

// Follow is such a program: it follows the control plane at addr, whose root is in
// rootFile, until ctx ends.
func Follow(ctx context.Context, addr, rootFile string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	config := mtls.ToServer(func() ([]byte, error) { return os.ReadFile(rootFile) }, host, "")
	cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newRawCodec())))
	if err != nil {
		return err
	}
	defer cc.Close()
	st, err := discovery.NewAggregatedDiscoveryServiceClient(cc).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	answer, err := proto.Marshal(&discovery.DeltaDiscoveryRequest{TypeUrl: controlType, ResponseNonce: "nonce"})
	if err != nil {
		return err
	}
	for {
		if err := st.SendMsg(message(answer)); err != nil {
			return fmt.Errorf("control plane %s: %w", addr, err)
		}
		if err := st.RecvMsg(&ignored{}); err != nil {
			return fmt.Errorf("control plane %s: %w", addr, err)
		}
	}
}

// request is a DeltaDiscoveryRequest, as far as it is of use.
type request struct{ kind []byte }

// ignored is a message that nothing is read of.
type ignored struct{}

// rawCodec sends a message as it is, reads a request's type, and leaves the rest to the
// general one.
type rawCodec struct{ encoding.CodecV2 }

func newRawCodec() rawCodec { return rawCodec{encoding.GetCodecV2(protocodec.Name)} }

// Marshal is of encoding.CodecV2.
func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(message); ok {
		return mem.BufferSlice{mem.SliceBuffer(m)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal is of encoding.CodecV2.
func (c rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	switch v := v.(type) {
	case *ignored:
		return nil
	case *request:
		return v.read(data.Materialize())
	}
	return c.CodecV2.Unmarshal(data, v)
}

func (r *request) read(b []byte) error {
	const typeURL = 2 // field
	r.kind = r.kind[:0]
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return protowire.ParseError(m)
		}
		if num == typeURL && typ == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b[n:])
			r.kind = append(r.kind, v...)
			return nil
		}
		b = b[n+m:]
	}
	return nil
}
