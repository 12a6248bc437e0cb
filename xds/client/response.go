package client

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/workloadapi"
	"istio.io/istio/pkg/workloadapi/security"

	"github.com/warren-mesh/warren/xds/workload"
)

const (
	maxName    = 4 << 10 // far above cluster, kind, namespace and name
	maxVersion = 1 << 10
	// maxResource is above what an API server stores as one object.
	maxResource = 4 << 20
	maxReason   = 512
	maxNack     = 16 << 10
	maxDepth    = 64 // nesting of a resource
	serviceCost = 256
)

// change is a response as the store takes it.
type change struct {
	kind      kind
	nonce     string
	batch     workload.Batch
	set       map[string]entry    // by key
	gone      map[string]struct{} // keys
	forgotten []string            // names of policies that were refused, and are removed
	refusals  refusals
	standIns  []string // names of refused policies in whose place something stands
	received  int      // bytes of the resources
	growth    limits   // of the ledger, the keys that go away not counted
	answered  bool     // the response that it is of
	answers   answers  // of a client on demand
}

// read turns a response into a change. Nothing is changed yet.
func (l *ledger) read(k kind, r *delivery, rest *breath) *change {
	c := &change{
		kind: k, nonce: r.nonce,
		set: make(map[string]entry, r.resources.n), gone: map[string]struct{}{},
	}
	if r.resources.n > 1 {
		c.batch.Workloads = make([]*workload.Workload, 0, r.resources.n)
	}
	for _, name := range r.removed {
		// Unknown names are usual: Istio's control plane also names here what was
		// never there.
		if key, ok := l.find(name); ok {
			c.gone[key] = struct{}{}
		}
		if _, ok := l.refused[name]; ok {
			c.forgotten = append(c.forgotten, name)
		}
	}
	for res := range r.resources.all {
		rest.item()
		c.received += int(res.size)
		if err := c.take(l, res); err != nil {
			c.refusals.add(res.name, err)
			c.standIn(l, res)
		}
	}
	c.sweep(l)
	removed := slices.AppendSeq(make([]string, 0, len(c.gone)), maps.Keys(c.gone))
	if k == addresses {
		c.batch.RemovedAddresses = append(c.batch.RemovedAddresses, removed...)
	} else {
		c.batch.RemovedPolicies = removed
	}
	return c
}

// sweep removes what the control plane was not told we have and has not repeated.
func (c *change) sweep(l *ledger) {
	if len(l.unsaid) == 0 {
		return
	}
	repeated := map[string]struct{}{} // but not taken: the earlier version stays
	for _, name := range c.refusals.names {
		if key, ok := l.find(name); ok {
			repeated[key] = struct{}{}
		}
	}
	for key := range l.unsaid {
		_, again := repeated[key]
		if _, set := c.set[key]; !set && !again {
			c.gone[key] = struct{}{}
		}
	}
}

// take adds one resource to the change, or says why not.
func (c *change) take(l *ledger, res *resource) error {
	switch name := res.name; {
	case name == "":
		return errors.New("a resource without a name")
	case len(name) > maxName:
		return fmt.Errorf("a name of %d bytes, the limit is %d", len(name), maxName)
	case len(res.version) > maxVersion:
		return fmt.Errorf("a version of %d bytes, the limit is %d", len(res.version), maxVersion)
	case res.known && res.inside != c.kind:
		return wrongType(res.inside.typeURL())
	case res.fault() != nil:
		return res.fault()
	}
	o := res.object
	e := entry{name: res.name, version: res.version, service: o.service != nil, bytes: res.size + o.extra()}
	key := o.key()
	if key != e.name && !e.isFor(key) {
		// It could not be removed by its name later.
		return fmt.Errorf("it holds %s", clip(key, maxReason))
	}
	elsewhere := e.elsewhere(key)
	if _, twice := c.set[key]; twice || elsewhere && holds(c.set, e.name) {
		return errors.New("it is in the response twice")
	}
	old, held := l.entries[key]
	if err := c.grow(l, old, held, e); err != nil {
		return err
	}
	if held && old.service != e.service {
		c.batch.RemovedAddresses = append(c.batch.RemovedAddresses, key)
	}
	if key == e.name {
		e.name = key // one string in memory instead of two
	}
	if elsewhere {
		if old, held := l.find(e.name); held && old != key {
			c.gone[old] = struct{}{}
		}
	}
	c.set[key] = e
	o.appendTo(&c.batch)
	return nil
}

// standIn closes what a refused policy would have guarded, unless an earlier
// version of it stays or the response has another. A node that would not take a
// policy must not be more open than one that has it.
func (c *change) standIn(l *ledger, res *resource) {
	name := res.name
	if c.kind != policies || len(name) > maxName {
		return
	}
	old, held := l.entries[name]
	_, gone := c.gone[name]
	if _, set := c.set[name]; set || held && !gone && !old.standIn {
		return
	}
	if res.known && res.inside != policies {
		res.standFor(nil) // of what a policy could not be, nothing is read
	}
	if res.rare == nil || res.rare.standIn == nil {
		return
	}
	e := entry{name: name, standIn: true, bytes: int32(len(name))}
	if c.grow(l, old, held, e) != nil {
		return
	}
	c.set[name] = e
	c.standIns = append(c.standIns, name)
	c.batch.Policies = append(c.batch.Policies, res.rare.standIn)
}

// grow counts a resource in the place of an old one that may be held, unless it is one too
// many.
func (c *change) grow(l *ledger, old entry, held bool, e entry) error {
	more := limits{resources: c.growth.resources, bytes: c.growth.bytes + int(e.bytes-old.bytes)}
	if !held {
		more.resources++
	}
	switch {
	case !held && len(l.entries)+more.resources > l.limit.resources:
		return fmt.Errorf("more than %d resources", l.limit.resources)
	case e.bytes > old.bytes && l.bytes+more.bytes > l.limit.bytes:
		return fmt.Errorf("more than %d bytes of resources", l.limit.bytes)
	}
	c.growth = more
	return nil
}

// isFor reports whether the entry is a service whose name differs from the key
// only as hostnames may.
func (e entry) isFor(key string) bool {
	if !e.service {
		return false
	}
	h, err := workload.ParseNamespacedHostname(e.name)
	return err == nil && h.String() == key
}

// object is a converted resource: one of the three.
type object struct {
	workload *workload.Workload
	service  *workload.Service
	policy   *workload.Policy
}

func decode(k kind, packed []byte) (object, error) {
	var o object
	// Unknown fields would only be kept in memory; that a newer control plane may
	// send some is the purpose of the format. In a policy they may be conditions.
	opts := proto.UnmarshalOptions{DiscardUnknown: k != policies, RecursionLimit: maxDepth}
	if k == policies {
		p := &security.Authorization{}
		if err := opts.Unmarshal(packed, p); err != nil {
			return o, err
		}
		var err error
		o.policy, err = workload.PolicyFromProto(p)
		return o, err
	}
	a := &workloadapi.Address{}
	if err := opts.Unmarshal(packed, a); err != nil {
		return o, err
	}
	var err error
	o.workload, o.service, err = workload.AddressFromProto(a)
	return o, err
}

func (o object) key() string {
	switch {
	case o.workload != nil:
		return o.workload.ResourceName()
	case o.service != nil:
		return o.service.ResourceName()
	default:
		return o.policy.ResourceName()
	}
}

// extra is what an object costs beyond its size on the wire: a service that a workload
// names is a few bytes there, and here a list of its endpoints.
func (o object) extra() int32 {
	if o.workload == nil || len(o.workload.Services) < 2 { // most have one, which others have, too
		return 0
	}
	return int32(len(o.workload.Services)) * serviceCost
}

func (o object) appendTo(b *workload.Batch) {
	switch {
	case o.workload != nil:
		b.Workloads = append(b.Workloads, o.workload)
	case o.service != nil:
		b.Services = append(b.Services, o.service)
	default:
		b.Policies = append(b.Policies, o.policy)
	}
}

// refusals are the resources of a response that were not taken.
type refusals struct {
	count int
	names []string // those fit to be remembered
	text  strings.Builder
	more  int // not in the text
}

func (r *refusals) add(name string, err error) {
	r.count++
	if name != "" && len(name) <= maxName {
		r.names = append(r.names, name)
	}
	reason := clip(name, maxReason) + ": " + clip(err.Error(), maxReason)
	if r.text.Len()+len(reason) > maxNack {
		r.more++
		return
	}
	if r.text.Len() > 0 {
		r.text.WriteString("; ")
	}
	r.text.WriteString(reason)
}

// message is the text of a NACK, empty for an ACK. Protobuf sends valid UTF-8 only.
func (r *refusals) message() string {
	if r.count == 0 {
		return ""
	}
	text := strings.ToValidUTF8(r.text.String(), "?")
	if r.more > 0 {
		text += fmt.Sprintf("; and %d more", r.more)
	}
	return text
}

// clip shortens a text of the peer's, between two characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
