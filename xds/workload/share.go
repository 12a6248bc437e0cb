package workload

import (
	"encoding/binary"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protowire"
)

// What a Sharer remembers is bounded, by entries and by their bytes; beyond, it begins
// anew. What is long is not remembered: no two objects of a mesh have it in common, but
// for those of a control plane that would fill the memory with what has gone.
const (
	maxShared      = 1 << 18
	maxSharedBytes = 32 << 20
	maxSharedText  = 1 << 10
)

// Sharer has workloads share what is equal between them: pods of one deployment differ
// in little more than name and address. In a large mesh that is a third of the memory,
// and as much less for the garbage collector to look at. The zero value is ready. It
// belongs to one goroutine.
type Sharer struct {
	texts      map[string]string
	identities map[identityKey][]spiffeid.ID
	services   map[string]Memberships
	members    map[string]*membership // by the bytes on the wire
	size       int                    // of all keys
	key        []byte

	before before

	// Of the workload that is being read.
	policies, lastPolicies []string
	ports                  []Port // of a service
	located                bool
}

// before is what the workload before had. Pods of one deployment mostly come one after the
// other, and to compare costs less than to look up.
type before struct {
	fields   [maxField]string // texts, by number
	identity identityKey
	ids      []spiffeid.ID // of identity
	member   *membership
}

// limit makes room.
func (s *Sharer) limit() {
	n := len(s.texts) + len(s.identities) + len(s.services) + len(s.members)
	if s.texts == nil || n > maxShared || s.size > maxSharedBytes {
		*s = Sharer{
			texts: map[string]string{}, identities: map[identityKey][]spiffeid.ID{},
			services: map[string]Memberships{}, members: map[string]*membership{},
		}
	}
	if cap(s.policies) > maxSharedText {
		s.policies, s.lastPolicies = nil, nil
	}
}

// Workload shares the parts of a workload that nobody else has yet.
func (s *Sharer) Workload(w *Workload) {
	s.limit()
	for _, p := range [...]*string{
		&w.Namespace, &w.Network, &w.TrustDomain, &w.ServiceAccount, &w.Node, &w.ClusterID, &w.Locality.Region, &w.Locality.Zone, &w.Locality.Subzone,
		&w.CanonicalName, &w.CanonicalRevision, &w.WorkloadName,
	} {
		*p = s.text(*p)
	}
	for i := range w.Policies {
		w.Policies[i] = s.text(w.Policies[i])
	}
	if len(w.ids) == 1 {
		w.ids = s.ids(w, func() []spiffeid.ID { return w.ids })
	}
	if len(w.Services) == 1 {
		s.service(w)
	}
}

// ids are a workload's identities, made where they are not known.
func (s *Sharer) ids(w *Workload, form func() []spiffeid.ID) []spiffeid.ID {
	key := identityKey{w.TrustDomain, w.Namespace, w.ServiceAccount}
	if s.before.ids != nil && s.before.identity == key {
		return s.before.ids
	}
	ids, known := s.identities[key]
	if !known {
		ids = form()
		if s.remembers(len(key.trustDomain) + len(key.namespace) + len(key.serviceAccount)) {
			s.identities[key] = ids
		}
	}
	s.before.identity, s.before.ids = key, ids
	return ids
}

// remembers counts an entry of n bytes, unless it is too long.
func (s *Sharer) remembers(n int) bool {
	if n > maxSharedText {
		return false
	}
	s.size += n
	return true
}

func (s *Sharer) text(t string) string {
	if t == "" {
		return ""
	}
	if known, ok := s.texts[t]; ok {
		return known
	}
	if s.remembers(len(t)) {
		s.texts[t] = t
	}
	return t
}

// field is bytes for a field of the workload itself.
func (s *Sharer) field(num protowire.Number, v []byte) (t string, ok bool) {
	last := &s.before.fields[num]
	if *last == string(v) {
		return *last, true
	}
	if t, ok = s.bytes(v); ok && len(t) <= maxSharedText {
		*last = t
	}
	return t, ok
}

// bytes is text for what is on the wire; ok is false for what is no text.
func (s *Sharer) bytes(v []byte) (t string, ok bool) {
	if len(v) == 0 {
		return "", true
	}
	if known, ok := s.texts[string(v)]; ok {
		return known, true
	}
	if !utf8.Valid(v) {
		return "", false
	}
	return s.text(string(v)), true
}

// service shares that of a workload that has one service, as most have.
func (s *Sharer) service(w *Workload) {
	m := w.Services[0]
	s.key = append(append(append(append(s.key[:0], m.Service.Namespace...), '/'), m.Service.Hostname...), 0)
	for _, p := range m.Ports {
		s.key = append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(s.key, p.Service), p.Target), byte(p.AppProtocol))
	}
	if known, ok := s.services[string(s.key)]; ok {
		w.Services = known
		return
	}
	if s.remembers(len(s.key)) {
		s.services[string(s.key)] = w.Services
	}
}
