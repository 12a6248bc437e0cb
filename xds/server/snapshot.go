package server

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/workloadapi"

	"github.com/warren-mesh/warren/xds/workload"
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
	model   Model
	lazy    lazyIndex
}

// Version is a hash of the contents: equal on every replica and after a restart.
func (s *Snapshot) Version() string { return s.version }

// resources are those of one type. A resource's version is a hash of its bytes, so
// that a client that reconnects, to whichever replica, is sent only what differs.
type resources struct {
	byName map[string]*resource
	hash   string // of names and versions

	mu    sync.Mutex
	steps map[string]step // from the resources with this hash to these
}

// step is what a client needs to get from one state to another. It is shared by all
// clients that take it and must not be changed.
type step struct {
	send []*resource
	gone []string
}

// nothing is what a client has that has just started.
var nothing = &resources{hash: (&resources{}).sum()}

// maxSteps bounds what is remembered for clients that are not all at one place.
const maxSteps = 16

// from returns the step from older resources, which is computed once.
func (r *resources) from(older *resources) step {
	if r == older || r.hash == older.hash {
		return step{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, ok := r.steps[older.hash]; ok {
		return s
	}
	s := diff(older, r)
	if len(r.steps) < maxSteps {
		if r.steps == nil {
			r.steps = make(map[string]step)
		}
		r.steps[older.hash] = s
	}
	return s
}

func (r *resources) version(name string) (string, bool) {
	res, ok := r.byName[name]
	if !ok {
		return "", false
	}
	return res.version, true
}

func (r *resources) names() iter.Seq[string] { return maps.Keys(r.byName) }

// Model is what a snapshot is made of. The objects must not change any more.
type Model struct {
	Workloads []*workload.Workload
	Services  []*workload.Service
	Policies  []*workload.Policy
}

// NewSnapshot serializes a model. What is as it was in prev, which may be nil, is
// shared with it. An error names resources that cannot be served, because they have no
// name or another has it; the snapshot returned with it holds all the others.
func NewSnapshot(prev *Snapshot, m Model) (*Snapshot, error) {
	if prev == nil {
		prev = &Snapshot{types: [kinds]*resources{{}, {}}}
	}
	authz := newBuilder(prev.types[policies], len(m.Policies))
	addrs := newBuilder(prev.types[addresses], len(m.Workloads)+len(m.Services))
	var errs []error
	for _, p := range m.Policies {
		errs = append(errs, authz.add(p.ResourceName(), p.ToProto()))
	}
	for _, w := range m.Workloads {
		errs = append(errs, addrs.add(w.ResourceName(), &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w.ToProto()}}))
	}
	for _, s := range m.Services {
		errs = append(errs, addrs.add(s.ResourceName(), &workloadapi.Address{Type: &workloadapi.Address_Service{Service: s.ToProto()}}))
	}
	next := &Snapshot{types: [kinds]*resources{policies: authz.out, addresses: addrs.out}, model: m}
	h := xxhash.New()
	for k, r := range next.types {
		r.hash = r.sum()
		if r.hash == prev.types[k].hash {
			next.types[k] = prev.types[k]
		}
		_, _ = h.WriteString(r.hash + " ") // a hash never fails
	}
	next.version = strconv.FormatUint(h.Sum64(), 16)
	return next, errors.Join(errs...)
}

type builder struct{ prev, out *resources }

func newBuilder(prev *resources, size int) builder {
	return builder{prev: prev, out: &resources{byName: make(map[string]*resource, size)}}
}

func (b builder) add(name string, m proto.Message) error {
	if name == "" {
		return errors.New("xds server: a resource without a name")
	}
	if _, dup := b.out.byName[name]; dup {
		return fmt.Errorf("xds server: two resources named %s: only the first is served", name)
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("xds server: resource %s: %w", name, err)
	}
	version := strconv.FormatUint(xxhash.Sum64(value), 16)
	if old, ok := b.prev.byName[name]; ok && old.version == version {
		b.out.byName[name] = old
		return nil
	}
	res, err := newResource(name, version, "type.googleapis.com/"+string(m.ProtoReflect().Descriptor().FullName()), value)
	if err != nil {
		return fmt.Errorf("xds server: resource %s: %w", name, err)
	}
	b.out.byName[name] = res
	return nil
}

// sum folds the names and versions into one.
func (r *resources) sum() string {
	h := xxhash.New()
	for _, name := range slices.Sorted(r.names()) {
		_, _ = h.WriteString(name + "\x00" + r.byName[name].version + "\x00")
	}
	return strconv.FormatUint(h.Sum64(), 16)
}
