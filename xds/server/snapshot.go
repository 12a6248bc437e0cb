package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"
)

// The types served.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

// kind indexes what exists once for each type.
type kind int

const (
	policies kind = iota
	addresses
	kinds int = iota
)

func (k kind) typeURL() string {
	if k == policies {
		return AuthorizationType
	}
	return AddressType
}

func kindOf(typeURL string) (kind, bool) {
	switch typeURL {
	case AuthorizationType:
		return policies, true
	case AddressType:
		return addresses, true
	}
	return 0, false
}

// Snapshot is the state of the mesh at one moment. It never changes; snapshots made
// one after the other share what is equal.
type Snapshot struct {
	version string
	types   [kinds]*resources
}

// Version is a hash of the contents: equal on every replica and after a restart.
func (s *Snapshot) Version() string { return s.version }

// resources are those of one type. A resource's version is a hash of its bytes, so
// that a client that reconnects, to whichever replica, is sent only what differs.
type resources struct {
	byName map[string]*discovery.Resource
}

func (r *resources) version(name string) (string, bool) {
	res, ok := r.byName[name]
	return res.GetVersion(), ok
}

func (r *resources) names() iter.Seq[string] { return maps.Keys(r.byName) }

// NewSnapshot serializes the resources. What is as it was in prev, which may be nil,
// is shared with it. Two resources under one name are an error, as is a resource
// without a name; nothing the callers hold is kept.
func NewSnapshot(prev *Snapshot, addrs []*workloadapi.Address, authz []*security.Authorization) (*Snapshot, error) {
	if prev == nil {
		prev = &Snapshot{types: [kinds]*resources{{}, {}}}
	}
	next := &Snapshot{}
	builders := [kinds]builder{newBuilder(prev.types[policies], len(authz)), newBuilder(prev.types[addresses], len(addrs))}
	var errs []error
	for _, p := range authz {
		errs = append(errs, builders[policies].add(p.GetNamespace()+"/"+p.GetName(), p))
	}
	for _, a := range addrs {
		name, err := addressName(a)
		if err == nil {
			err = builders[addresses].add(name, a)
		}
		errs = append(errs, err)
	}
	for k := range builders {
		next.types[k] = builders[k].out
	}
	next.version = hash(next.types)
	return next, errors.Join(errs...)
}

func addressName(a *workloadapi.Address) (string, error) {
	switch t := a.GetType().(type) {
	case *workloadapi.Address_Workload:
		if t.Workload.GetUid() != "" {
			return t.Workload.GetUid(), nil
		}
	case *workloadapi.Address_Service:
		if t.Service.GetHostname() != "" {
			return t.Service.GetNamespace() + "/" + t.Service.GetHostname(), nil
		}
	}
	return "", errors.New("xds server: an address that is neither a workload with a uid nor a service with a hostname")
}

type builder struct{ prev, out *resources }

func newBuilder(prev *resources, size int) builder {
	return builder{prev: prev, out: &resources{byName: make(map[string]*discovery.Resource, size)}}
}

func (b builder) add(name string, m proto.Message) error {
	if _, dup := b.out.byName[name]; dup {
		return fmt.Errorf("xds server: two resources named %s: only the first is served", name)
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("xds server: resource %s: %w", name, err)
	}
	version := strconv.FormatUint(xxhash.Sum64(value), 16)
	if old := b.prev.byName[name]; old.GetVersion() == version {
		b.out.byName[name] = old
		return nil
	}
	b.out.byName[name] = &discovery.Resource{
		Name:     name,
		Version:  version,
		Resource: &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: value},
	}
	return nil
}

// hash folds the names and versions of everything into one version.
func hash(types [kinds]*resources) string {
	h := xxhash.New()
	for _, t := range types {
		_ = binary.Write(h, binary.BigEndian, uint64(len(t.byName))) // a hash never fails
		for _, name := range slices.Sorted(t.names()) {
			_, _ = h.WriteString(name + "\x00" + t.byName[name].GetVersion() + "\x00")
		}
	}
	return strconv.FormatUint(h.Sum64(), 16)
}
