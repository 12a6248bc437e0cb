package workload

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// WorkloadFromWire reads a workload out of an encoded istio.workload.Address, if it is an
// ordinary one: with nothing that is wrong, rare or new in it. Everything else is left to
// AddressFromProto, which says the same of what both take. A mesh is mostly ordinary
// workloads, and most of what they say has been said before, so that this costs a
// fraction of the time and makes next to no garbage. Nothing of packed is kept.
func (s *Sharer) WorkloadFromWire(packed []byte) (w *Workload, ok bool) {
	b, rest, ok := leadingField(packed, 1)
	if !ok || len(rest) > 0 {
		return nil, false
	}
	s.limit()
	w = &Workload{}
	s.policies, s.located = s.policies[:0], false
	ok = fields(b, func(num protowire.Number, v []byte) bool { return s.text1(w, num, v) },
		func(num protowire.Number, v uint64) bool { return number1(w, num, v) })
	return w, ok && s.finish(w)
}

// fields hands out the fields of a message, by whether they have a length or are numbers,
// until one is not taken. There are no others in an ordinary message.
func fields(b []byte, text func(protowire.Number, []byte) bool, number func(protowire.Number, uint64) bool) (ok bool) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		switch typ {
		case protowire.BytesType:
			var v []byte
			if v, n = protowire.ConsumeBytes(b); n < 0 || !text(num, v) {
				return false
			}
		case protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(b); n < 0 || !number(num, v) {
				return false
			}
		default:
			return false
		}
		b = b[n:]
	}
	return true
}

// noText and noNumber are for messages that have none.
func noText(protowire.Number, []byte) bool   { return false }
func noNumber(protowire.Number, uint64) bool { return false }

// text1 takes a field that has a length.
func (s *Sharer) text1(w *Workload, num protowire.Number, v []byte) bool {
	var to *string
	switch num {
	case 1: // most often the end of the UID, which may come later
		to = &w.Name
		*to = string(v)
		return utf8.Valid(v)
	case 2:
		to = &w.Namespace
	case 3:
		a, ok := netip.AddrFromSlice(v)
		w.Addresses = append(w.Addresses, a.Unmap())
		return ok && len(w.Addresses) <= maxAddresses
	case 4:
		to = &w.Network
	case 6:
		to = &w.TrustDomain
	case 7:
		to = &w.ServiceAccount
	case 9:
		to = &w.Node
	case 10:
		to = &w.CanonicalName
	case 11:
		to = &w.CanonicalRevision
	case 13:
		to = &w.WorkloadName
	case 16:
		t, ok := s.bytes(v)
		s.policies = append(s.policies, t)
		return ok && len(s.policies) <= maxPolicies
	case 18:
		to = &w.ClusterID
	case 20:
		w.UID = string(v)
		return utf8.Valid(v)
	case 22:
		return s.service1(w, v)
	case 24:
		return s.locality(w, v)
	default: // waypoints, gateways, tunnels, weights, hostnames, and what is not known
		return false
	}
	var ok bool
	*to, ok = s.field(num, v)
	return ok
}

// maxField is above the numbers of the fields that text1 takes.
const maxField = 26

// number1 takes a field that is a number; enumerations have all numbers up to one.
func number1(w *Workload, num protowire.Number, v uint64) bool {
	switch num {
	case 5:
		w.Protocol = TunnelProtocol(v)
		return v < uint64(len(tunnelNames))
	case 12:
		w.Type = Type(v)
		return v < uint64(len(typeNames))
	case 14:
		w.NativeTunnel = v != 0
		return v < 2
	case 17:
		w.Status = Status(v)
		return v < uint64(len(statusNames))
	case 25:
		w.NetworkMode = NetworkMode(v)
		return v < uint64(len(networkModeNames))
	}
	return false
}

func (s *Sharer) locality(w *Workload, b []byte) bool {
	if s.located { // two would have to be merged
		return false
	}
	s.located = true
	return fields(b, func(num protowire.Number, v []byte) bool {
		t, ok := s.bytes(v)
		switch num {
		case 1:
			w.Locality.Region = t
		case 2:
			w.Locality.Zone = t
		case 3:
			w.Locality.Subzone = t
		default:
			return false
		}
		return ok
	}, noNumber)
}

// membership is what an entry of the map of services says.
type membership struct {
	entry string // on the wire
	alone Memberships
}

// service1 takes an entry of the map of services. Those with the same bytes are the same.
func (s *Sharer) service1(w *Workload, entry []byte) bool {
	m := s.before.member
	if m == nil || m.entry != string(entry) {
		m = s.members[string(entry)]
	}
	if m == nil {
		one, ok := s.membershipFromWire(entry)
		if !ok {
			return false
		}
		m = &membership{entry: string(entry), alone: Memberships{one}}
		if s.remembers(len(entry)) {
			s.members[m.entry] = m
		}
	}
	if len(entry) <= maxSharedText {
		s.before.member = m
	}
	if w.Services == nil {
		w.Services = m.alone[:1:1] // shared: a second one makes it a copy
	} else {
		w.Services = append(w.Services, m.alone[0])
	}
	return len(w.Services) <= maxServices
}

// membershipFromWire reads an entry of the map of services: a key, and a list of ports.
func (s *Sharer) membershipFromWire(entry []byte) (m Membership, ok bool) {
	key, rest, ok := leadingField(entry, 1)
	if !ok || !utf8.Valid(key) {
		return m, false
	}
	if m.Service, ok = CutNamespacedHostname(string(key)); !ok {
		return m, false
	}
	m.Service.Namespace = s.text(m.Service.Namespace)
	if len(rest) == 0 {
		return m, true
	}
	list, rest, ok := leadingField(rest, 2)
	if !ok || len(rest) > 0 {
		return m, false
	}
	var ports []Port
	for len(list) > 0 {
		var b []byte
		if b, list, ok = leadingField(list, 1); !ok {
			return m, false
		}
		if ports, ok = appendPort(ports, b); !ok {
			return m, false
		}
	}
	m.Ports = NewPortMap(ports...)
	return m, true
}

// finish fills in what is derived, as WorkloadFromProto does.
func (s *Sharer) finish(w *Workload) bool {
	w.TrustDomain = orDefault(w.TrustDomain, DefaultTrustDomain)
	w.ServiceAccount = orDefault(w.ServiceAccount, DefaultServiceAccount)
	w.ClusterID = orDefault(w.ClusterID, DefaultCluster)
	if strings.HasSuffix(w.UID, w.Name) {
		w.Name = w.UID[len(w.UID)-len(w.Name):] // the same memory
	}
	w.Policies = s.list()
	w.ids = s.ids(w, w.Identities)
	return w.UID != "" && w.Services.inOrder() && (w.Protocol != HBONE || len(w.ids) == 1)
}

type identityKey struct{ trustDomain, namespace, serviceAccount string }

// list is what the policies' names were gathered to, shared with those of the workload
// before, if they are the same.
func (s *Sharer) list() []string {
	switch {
	case len(s.policies) == 0:
		return nil
	case !equalTexts(s.policies, s.lastPolicies):
		s.lastPolicies = append([]string(nil), s.policies...)
	}
	return s.lastPolicies
}

func equalTexts(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
