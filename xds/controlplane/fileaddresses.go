package controlplane

import (
	"log/slog"
	"slices"
	"sync"

	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/warren-mesh/warren/xds/translate"
)

// fileAddresses gives addresses to the hosts of ServiceEntries in a folder, which nobody
// writes into: they are kept here, and after a restart they are found again by the hosts'
// names, unless two of these had the same place.
type fileAddresses struct {
	log *slog.Logger

	mu    sync.Mutex
	given map[string][]*apinetworking.ServiceEntryAddress // by namespace/name
	told  []translate.Problem
}

// fill returns the objects with addresses in the status of their ServiceEntries.
func (f *fileAddresses) fill(o translate.Objects) translate.Objects {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := make(map[*networkingv1.ServiceEntry]int)
	o.ServiceEntries = slices.Clone(o.ServiceEntries)
	for i, e := range o.ServiceEntries {
		if before := f.given[e.Namespace+"/"+e.Name]; len(before) > 0 && len(e.Status.GetAddresses()) == 0 {
			e = e.DeepCopy()
			e.Status.Addresses = before
			o.ServiceEntries[i] = e
		}
		at[e] = i
	}
	list, problems := translate.Allocate(o.ServiceEntries)
	tellUnaddressed(f.log, f.told, problems)
	f.told = problems
	for _, a := range list {
		e := a.Entry.DeepCopy()
		e.Status.Addresses = statusOf(a)
		o.ServiceEntries[at[a.Entry]] = e
	}
	f.given = make(map[string][]*apinetworking.ServiceEntryAddress, len(o.ServiceEntries))
	for _, e := range o.ServiceEntries {
		f.given[e.Namespace+"/"+e.Name] = e.Status.GetAddresses()
	}
	return o
}

// statusOf is an allocation as a status says it.
func statusOf(a translate.Allocation) (out []*apinetworking.ServiceEntryAddress) {
	for _, h := range a.Addresses {
		out = append(out, &apinetworking.ServiceEntryAddress{Host: h.Host, Value: h.Address.String()})
	}
	return out
}

// tellUnaddressed logs what is newly wrong with the addresses of hosts.
func tellUnaddressed(log *slog.Logger, told, problems []translate.Problem) {
	for _, p := range problems[:min(len(problems), maxProblemLines)] {
		if !slices.Contains(told, p) {
			log.Error("not all hosts are given the addresses they should be", "namespace", p.Namespace, "name", p.Name, "field", p.Field, "err", p.Reason)
		}
	}
}
