package client

import (
	"bytes"
	"runtime"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
)

// FuzzCodec holds our decoder against the general one.
func FuzzCodec(f *testing.F) {
	full := response(AddressType, "n", pod("w", "1"), service("ns/s.x", "2"), &discovery.Resource{})
	full.RemovedResources = []string{"", "x"}
	full.SystemVersionInfo = "v"
	full.Resources[0].Aliases = []string{"a", "b"}
	b, err := proto.Marshal(full)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0x12, 4, 0x12, 2, 0x0a, 0, 0x2a, 1, 0xff})
	f.Add([]byte{0x08, 0x80, 0x12, 0, 0x13, 0x14})
	f.Fuzz(func(t *testing.T, b []byte) {
		want, got := &discovery.DeltaDiscoveryResponse{}, &discovery.DeltaDiscoveryResponse{}
		werr, gerr := proto.Unmarshal(b, want), decodeResponse(b, got, 1<<20, newBreath())
		if werr != nil {
			return // it may be broken in what we pass over
		}
		if gerr != nil {
			t.Fatal("not taken:", gerr)
		}
		used := &discovery.DeltaDiscoveryResponse{TypeUrl: want.TypeUrl, Nonce: want.Nonce, RemovedResources: want.RemovedResources}
		for _, r := range want.Resources {
			x := &discovery.Resource{Name: r.Name, Version: r.Version, Aliases: r.Aliases}
			if r.Resource != nil {
				x.Resource = &anypb.Any{TypeUrl: r.Resource.TypeUrl, Value: r.Resource.Value}
			}
			used.Resources = append(used.Resources, x)
		}
		if d := cmp.Diff(used, got, protocmp.Transform()); d != "" {
			t.Error("(-want +got):", d)
		}
	})
}

// TestCodecAmplification: a message within its limit must not become many times
// its size.
func TestCodecAmplification(t *testing.T) {
	for name, unit := range map[string]string{
		"resources": "\x12\x00", "removed": "\x32\x00", "aliases": "\x22\x00", "constraints": "\x42\x06\x12\x04\x12\x02\x0a\x00",
	} {
		b := bytes.Repeat([]byte(unit), 8<<20/len(unit))
		if name == "aliases" || name == "constraints" { // of one resource
			b = append([]byte{0x12, 0x80, 0x80, 0x80, 0x04}, b...)
		}
		r := &discovery.DeltaDiscoveryResponse{}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := decodeResponse(b, r, 1000, nil)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: %d bytes made of %d", name, n, len(b))
		}
		if one := name == "aliases" || name == "constraints"; one != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTooManyResources(t *testing.T) {
	s := newStub(t)
	c, _ := newClient(t, Config{Address: s.Address})
	run(t, c)
	x, _, _ := s.subscribed()
	r := &discovery.DeltaDiscoveryResponse{TypeUrl: AddressType, RemovedResources: make([]string, maxResources+1)}
	if err := x.Send(r); err != nil {
		t.Fatal(err)
	}
	s.subscribed() // it has hung up, and is back
}
