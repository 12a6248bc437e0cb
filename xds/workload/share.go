package workload

import (
	"encoding/binary"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxShared bounds what a Sharer remembers; beyond, it begins anew.
const maxShared = 1 << 18

// Sharer has workloads share what is equal between them: pods of one deployment differ
// in little more than name and address. In a large mesh that is a third of the memory,
// and as much less for the garbage collector to look at. The zero value is ready. It
// belongs to one goroutine.
type Sharer struct {
	texts    map[string]string
	ids      map[string][]spiffeid.ID
	services map[string]map[NamespacedHostname]PortMap
	key      []byte
}

// Workload shares the parts of a workload that nobody else has yet.
func (s *Sharer) Workload(w *Workload) {
	if s.texts == nil || len(s.texts)+len(s.ids)+len(s.services) > maxShared {
		*s = Sharer{texts: map[string]string{}, ids: map[string][]spiffeid.ID{}, services: map[string]map[NamespacedHostname]PortMap{}}
	}
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
		if ids, known := s.ids[w.ids[0].String()]; known {
			w.ids = ids
		} else {
			s.ids[w.ids[0].String()] = w.ids
		}
	}
	if len(w.Services) == 1 {
		s.service(w)
	}
}

func (s *Sharer) text(t string) string {
	if t == "" {
		return ""
	}
	if known, ok := s.texts[t]; ok {
		return known
	}
	s.texts[t] = t
	return t
}

// service shares the map of a workload that has one service, as most have.
func (s *Sharer) service(w *Workload) {
	s.key = s.key[:0]
	for key, ports := range w.Services {
		s.key = append(append(append(append(s.key, key.Namespace...), '/'), key.Hostname...), 0)
		for _, p := range ports {
			s.key = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(s.key, p.Service), p.Target)
		}
	}
	if known, ok := s.services[string(s.key)]; ok {
		w.Services = known
		return
	}
	s.services[string(s.key)] = w.Services
}
