package server_test

import (
	"runtime"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	pb "istio.io/api/security/v1alpha1"

	"github.com/warren-mesh/warren/ca/server"
)

// A request's metadata is any tree of values, which nobody has asked for.
func TestARequestsMetadataTakesNoMemory(t *testing.T) {
	list := &structpb.ListValue{}
	for range 1 << 20 {
		list.Values = append(list.Values, &structpb.Value{})
	}
	req := &pb.IstioCertificateRequest{Csr: "x", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"x": structpb.NewListValue(list)}}}
	text, err := encoding.GetCodecV2("proto").Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	data := mem.BufferSlice{mem.SliceBuffer(text.Materialize())}
	codec := server.Codec()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got := &pb.IstioCertificateRequest{Metadata: &structpb.Struct{}}
	if err := codec.Unmarshal(data, got); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes of memory for a request of %d", n, data.Len())
	}
	s, err := server.New(server.Config{Authority: newAuthority(t), TrustDomain: td, Authenticator: headerAuth{}, Authorizer: nodeAuthz{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateCertificate(as("node", "node-1"), got); status.Code(err) != codes.InvalidArgument {
		t.Errorf("it is answered by %v", err)
	}
	// What is as large as may be, and every other message, is decoded.
	small := &pb.IstioCertificateRequest{Csr: strings.Repeat("x", 16<<10), ValidityDuration: 7}
	if text, err = codec.Marshal(small); err != nil {
		t.Fatal(err)
	}
	if err := codec.Unmarshal(text, got); err != nil || got.ValidityDuration != 7 || len(got.Csr) != 16<<10 {
		t.Errorf("%d, %v", len(got.Csr), err)
	}
	if text, err = codec.Marshal(list); err != nil {
		t.Fatal(err)
	}
	other := &structpb.ListValue{}
	if err := codec.Unmarshal(text, other); err != nil || len(other.Values) != 1<<20 {
		t.Errorf("%d values, %v", len(other.Values), err)
	}
}
