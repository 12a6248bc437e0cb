package client

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/warren-mesh/warren/xds/workload"
)

// FuzzResponses lets a control plane send three responses, with a reconnect before
// the last. Whatever they are, the store is as the ledger says.
func FuzzResponses(f *testing.F) {
	encode := func(r *discovery.DeltaDiscoveryResponse) []byte {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	both := response(AddressType, "4", pod("w1", "2"), service("ns/S.x", "1"), service("ns/s.x", "2"), badPod("w2", "2"))
	both.RemovedResources = []string{"w1", "ns/s.x", "ns/S.x", ""}
	seeds := []*discovery.DeltaDiscoveryResponse{
		response(AddressType, "1", pod("w1", "1", "ns/p"), pod("w2", "1"), service("ns/s.x", "1")),
		response(AddressType, "2", service("ns/w", "1"), pod("ns/W", "1"), pod("ns/w", "1")),
		response(AddressType, "3", pod("ns/w", "1"), service("ns/W", "1")),
		both,
		{TypeUrl: AddressType, Resources: []*discovery.Resource{{Name: "; x"}}},
		removal(AddressType, "5", "w1", "w1", "ns/w", "ns/W"),
		response(AuthorizationType, "6", policy("p", "1"), badPolicy("q"), policy("p", "2")),
		removal(AuthorizationType, "7", "ns/p", "ns/q"),
		{TypeUrl: "x", Resources: []*discovery.Resource{nil, {Name: "n", Resource: &anypb.Any{TypeUrl: AddressType, Value: []byte{8, 1}}}}},
	}
	for i := range seeds {
		f.Add(encode(seeds[i]), encode(seeds[(i+1)%len(seeds)]), encode(seeds[(i+2)%len(seeds)]), uint16(i*20), uint8(i%3))
	}
	f.Fuzz(func(t *testing.T, first, second, third []byte, budget uint16, room uint8) {
		worlds := map[kind]*world{addresses: newWorld(addresses), policies: newWorld(policies)}
		for _, w := range worlds {
			w.limit = limits{resources: int(room), bytes: 40 * int(room)}
		}
		for i, b := range [][]byte{first, second, third} {
			r := &discovery.DeltaDiscoveryResponse{}
			if err := proto.Unmarshal(b, r); err != nil {
				return
			}
			for _, w := range worlds {
				if i == 2 {
					told := w.initial(int(budget))
					if len(told)+len(w.unsaid) != len(w.entries) {
						t.Errorf("told %d, not told %d of %d", len(told), len(w.unsaid), len(w.entries))
					}
				}
				text := w.apply(r)
				if len(text) > maxNack+100 || !utf8.ValidString(text) || strings.HasPrefix(text, "; ") && !namesBegin(r, "; ") {
					t.Errorf("NACK of %d bytes: %q", len(text), text)
				}
				w.check(t)
			}
		}
	})
}

// namesBegin says whether a resource's name begins with that.
func namesBegin(r *discovery.DeltaDiscoveryResponse, with string) bool {
	return slices.ContainsFunc(r.Resources, func(x *discovery.Resource) bool { return strings.HasPrefix(x.GetName(), with) })
}

// FuzzLedger reads its input as a program of a control plane with few names, so
// that they meet: two bits what to do, three bits with which name, three how.
func FuzzLedger(f *testing.F) {
	f.Add([]byte{0x00, 0x40, 0x80, 0xc0, 0x08, 0x48, 0x88, 0xc8, 0x10, 0xc7})
	f.Add([]byte("workloads and services of one name"))
	f.Add([]byte{0x01, 0xc0, 0x41, 0xc1, 0x49, 0xc0, 0x09, 0x81, 0xc0})
	universe := [8]string{"w", "a/b", "a/B", "A/b", "A/B", "a/b/c", "c//Pod/a/b", "a/c"}
	f.Fuzz(func(t *testing.T, program []byte) {
		w := newWorld(addresses)
		w.limit = limits{resources: 5, bytes: 300}
		r := response(AddressType, "")
		end := func() {
			w.apply(r)
			w.check(t)
			r = response(AddressType, "")
		}
		for _, b := range program {
			name, how := universe[b>>3&7], b&7
			switch b >> 6 {
			case 0:
				x := pod(name, string('0'+rune(how)))
				if how == 7 {
					x = badPod(name, "7")
				}
				r.Resources = append(r.Resources, x)
			case 1:
				x := pod(name, "8")
				if _, err := workload.ParseNamespacedHostname(name); err == nil {
					x = service(name, string('0'+rune(how)))
				}
				r.Resources = append(r.Resources, x)
			case 2:
				r.RemovedResources = append(r.RemovedResources, name)
			default:
				end()
				if how > 3 {
					w.initial(int(how-4) * 10)
				}
			}
		}
		end()
	})
}
