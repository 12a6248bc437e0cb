package client

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/warren-mesh/warren/xds/workload"
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
		want, got := &discovery.DeltaDiscoveryResponse{}, &delivery{}
		if proto.Unmarshal(b, want) != nil {
			return // it may be broken in what we pass over
		}
		var data mem.BufferSlice
		for piece := range slices.Chunk(b, 1+len(b)/5) {
			data = append(data, mem.SliceBuffer(piece))
		}
		if err := decodeResponse(data, got, 1<<20, &workload.Sharer{}, &breath{}); err != nil {
			t.Fatal("not taken:", err)
		}
		if got.typeURL != want.TypeUrl || got.nonce != want.Nonce || !slices.Equal(got.removed, want.RemovedResources) || got.resources.n != len(want.Resources) {
			t.Fatalf("%+v, want %v", got, want)
		}
		i := 0
		for r := range got.resources.all {
			w := want.Resources[i]
			i++
			if r.name != w.Name || r.version != w.Version || !slices.Equal(r.aliases(), w.Aliases) || int(r.size) != len(w.GetResource().GetValue()) {
				t.Errorf("%+v, want %v", r, w)
			}
			k, known := kindOf(w.GetResource().GetTypeUrl())
			if !known || len(w.GetResource().GetValue()) > maxResource {
				if r.fault() == nil {
					t.Errorf("taken: %v", w)
				}
				continue
			}
			o, err := decode(k, w.Resource.Value)
			if (err == nil) != (r.fault() == nil) || r.inside != k {
				t.Errorf("%v, want %v", r.fault(), err)
			}
			if err == nil && o.key() != r.object.key() {
				t.Errorf("%s, want %s", r.object.key(), o.key())
			}
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
		r := &delivery{}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := decodeResponse(mem.BufferSlice{mem.SliceBuffer(b)}, r, 1000, &workload.Sharer{}, nil)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: %d bytes made of %d", name, n, len(b))
		}
		if one := name == "aliases" || name == "constraints"; one != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSmall: what is gathered before anybody looks at it is small as a whole, whatever
// there is much of.
func TestSmall(t *testing.T) {
	long := strings.Repeat("x", smallBytes)
	for name, c := range map[string]struct {
		r     *discovery.DeltaDiscoveryResponse
		small bool
	}{
		"as usual":         {response(AddressType, "n", pod("w", "1")), true},
		"a long name":      {removal(AddressType, "n", long), false},
		"a long nonce":     {response(AddressType, long), false},
		"a long version":   {response(AddressType, "n", pod("w", long)), false},
		"a field unknown":  {&discovery.DeltaDiscoveryResponse{SystemVersionInfo: long}, false},
		"many removed":     {removal(AddressType, "n", make([]string, smallItems)...), true},
		"too many removed": {removal(AddressType, "n", make([]string, smallItems+1)...), false},
		"many resources":   {response(AddressType, "n", make([]*discovery.Resource, smallItems)...), true},
		"too many of them": {response(AddressType, "n", make([]*discovery.Resource, smallItems+1)...), false},
	} {
		if got := decoded(c.r).small(); got != c.small {
			t.Errorf("%s: small %v", name, got)
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

// A resource whose envelope is broken is refused by its name, as far as that can be read,
// and those around it are taken.
func TestBrokenEnvelope(t *testing.T) {
	good := func(name string) []byte {
		return field(2, append(field(3, []byte(name)), field(2, nil)...))
	}
	wire := slices.Concat(good("a"), field(2, append(field(3, []byte("b")), 0x12, 0x7f, 0x01)), field(2, []byte{0x12, 0xff}), good("c"), field(5, []byte("n1")))
	var r delivery
	if err := decodeResponse(mem.BufferSlice{mem.SliceBuffer(wire)}, &r, 10, &workload.Sharer{}, nil); err != nil {
		t.Fatal(err)
	}
	var got []string
	for res := range r.resources.all {
		if res.fault() == nil {
			t.Errorf("%q is taken", res.name)
			continue
		}
		got = append(got, fmt.Sprintf("%s malformed=%v", res.name, strings.Contains(res.fault().Error(), "malformed")))
	}
	want := []string{"a malformed=false", "b malformed=true", "(a resource whose name cannot be read) malformed=true", "c malformed=false"}
	if !slices.Equal(got, want) || r.nonce != "n1" {
		t.Errorf("got %q, nonce %q, want %q", got, r.nonce, want)
	}
}

// A policy whose envelope is broken, or which is none, leaves what it would have guarded
// closed, as one that is broken itself does: a denial for its namespace where nothing more
// can be read, and never more than one that was not broken would.
func TestBrokenEnvelopeOfAPolicy(t *testing.T) {
	const closed, global, permits = "NAMESPACE DENY 1", "GLOBAL DENY 1", "NAMESPACE ALLOW 0"
	name, broken := field(3, []byte("ns/p")), field(2, []byte{0x12, 0x7f, 0x01})
	version, alias := field(1, []byte{0xff}), field(4, []byte{0xff})
	pack := func(url string, head ...byte) []byte {
		return field(2, slices.Concat(field(1, []byte(url)), field(2, head)))
	}
	policy := func(head ...byte) []byte { return pack(AuthorizationType, head...) }
	for what, c := range map[string]struct {
		resource []byte
		want     string // in its place
	}{
		"a broken policy":              {slices.Concat(name, policy(0x12, 0x7f, 0x01)), closed},
		"an empty policy":              {slices.Concat(name, field(2, field(1, []byte(AuthorizationType)))), closed},
		"a broken envelope":            {slices.Concat(name, broken), closed},
		"nothing but a broken version": {slices.Concat(version, name), closed},
		"nothing inside":               {name, closed},
		"a denial's version":           {slices.Concat(version, policy(0x18, 1, 0x20, 1), name), closed},
		"the version of all's":         {slices.Concat(version, policy(0x18, 0, 0x20, 1), name), global},
		"a permission's version":       {slices.Concat(version, policy(0x18, 1, 0x20, 0), name), permits},
		"single workloads'":            {slices.Concat(version, policy(0x18, 2, 0x20, 1), name), ""},
		"a broken alias":               {slices.Concat(policy(0x18, 1, 0x20, 0), name, alias), permits},
		"single workloads' dry run":    {slices.Concat(version, policy(0x18, 2, 6<<3, 1), name), "WorkloadSelector DENY 0"},
		"one in dry run":               {slices.Concat(policy(6<<3, 1), name, alias), ""},
		"an address":                   {slices.Concat(pack(AddressType, 0x18, 0), name), closed},
		"an address's version":         {slices.Concat(version, pack(AddressType, 0x18, 0), name), closed},
		"another type":                 {slices.Concat(pack("type.googleapis.com/other", 0x18, 0), name), closed},
		"a type that is no text":       {slices.Concat(pack("\xff", 0x18, 0), name), closed},
		"not even a name":              {broken, ""},
		"no namespace either":          {slices.Concat(field(3, []byte("p")), broken), ""},
	} {
		t.Run(what, func(t *testing.T) {
			var r delivery
			wire := slices.Concat(field(4, []byte(AuthorizationType)), field(2, c.resource), field(5, []byte("n1")))
			if err := decodeResponse(mem.BufferSlice{mem.SliceBuffer(wire)}, &r, 10, &workload.Sharer{}, nil); err != nil {
				t.Fatal(err)
			}
			got := newLedger(limits{100, 1 << 20}).read(policies, &r, nil)
			stands := ""
			for _, p := range got.batch.Policies {
				stands += fmt.Sprintf("%s %s %d", p.Scope, p.Action, len(p.Rules))
				if p.ResourceName() != "ns/p" {
					t.Errorf("stands under %q", p.ResourceName())
				}
			}
			if got.refusals.count != 1 || !strings.EqualFold(stands, c.want) {
				t.Errorf("refused %q, in its place %q, want %q", got.refusals.message(), stands, c.want)
			}
		})
	}
}

func field(num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), v)
}
