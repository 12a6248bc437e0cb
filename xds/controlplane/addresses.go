package controlplane

import (
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	apinetworking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/warren-mesh/warren/xds/translate"
)

// seenWithin is how long what was written is taken for what is there, if the API server
// does not say so before.
const seenWithin = time.Minute

// addresses gives addresses to the hosts of ServiceEntries that have none. They are kept
// in the entries' status, where every replica, and the one that leads next, finds them.
type addresses struct {
	entries func() ([]*networkingv1.ServiceEntry, <-chan struct{})
	log     *slog.Logger

	// What was written and has not been read yet: else the next to come might be given
	// the same. By the entry's namespace/name.
	mu      sync.Mutex
	written map[string]written

	told []translate.Problem       // what the log says; wanted's
	tell func([]translate.Problem) // takes what is wrong, for who looks at the objects; nil for nobody
}

type written struct {
	uid    types.UID
	status []*apinetworking.ServiceEntryAddress
	at     time.Time
}

// addressStatus is the writer of it. One at a time: who comes next sees what was given.
func addressStatus(client dynamic.Interface, m *model, log *slog.Logger, tell func([]translate.Problem)) *statusWriter {
	a := &addresses{log: log, tell: tell, written: make(map[string]written), entries: func() ([]*networkingv1.ServiceEntry, <-chan struct{}) {
		objects, _, changed := m.policies()
		return objects.ServiceEntries, changed
	}}
	return &statusWriter{what: "addresses", client: client, log: log, wanted: a.wanted, workers: 1}
}

// wanted says whose status lacks addresses, or has another's.
func (a *addresses) wanted() (map[string]wantedStatus, <-chan struct{}) {
	entries, changed := a.entries()
	list, problems := translate.Allocate(a.withWritten(entries, time.Now()))
	tellUnaddressed(a.log, a.told, problems)
	a.told = problems
	if a.tell != nil {
		a.tell(problems)
	}
	out := make(map[string]wantedStatus, len(list))
	for _, entry := range list {
		gv, err := schema.ParseGroupVersion(entry.Entry.APIVersion)
		if err != nil {
			continue
		}
		e := entry.Entry
		out[e.Namespace+"/"+e.Name] = a.wantedOf(gv.WithResource(entryResource), entry)
	}
	return out, changed
}

func (a *addresses) wantedOf(resource schema.GroupVersionResource, to translate.Allocation) wantedStatus {
	e, status := to.Entry, statusOf(to)
	return wantedStatus{
		resource: resource, namespace: e.Namespace, name: e.Name, generation: e.Generation, change: a.change(to),
		says: func(now *unstructured.Unstructured) bool { return sameAddresses(now, status) },
		mark: string(e.UID) + addressText(e.Status.GetAddresses()) + " to" + addressText(status),
		done: func() { a.note(to) },
	}
}

func addressText(list []*apinetworking.ServiceEntryAddress) string {
	var b strings.Builder
	for _, a := range list {
		b.WriteString(" " + a.GetHost() + "=" + a.GetValue())
	}
	return b.String()
}

// withWritten returns the entries with what was written into them.
func (a *addresses) withWritten(entries []*networkingv1.ServiceEntry, now time.Time) []*networkingv1.ServiceEntry {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.written) == 0 {
		return entries
	}
	entries = slices.Clone(entries)
	left := make(map[string]written)
	for i, e := range entries {
		w, ok := a.written[e.Namespace+"/"+e.Name]
		if !ok || w.uid != e.UID || now.Sub(w.at) > seenWithin || equality.Semantic.DeepEqual(w.status, e.Status.GetAddresses()) {
			continue
		}
		left[e.Namespace+"/"+e.Name] = w
		entries[i] = e.DeepCopy()
		entries[i].Status.Addresses = w.status
	}
	a.written = left
	return entries
}

// change puts addresses into a status that is as it was when they were chosen.
func (a *addresses) change(to translate.Allocation) func(*unstructured.Unstructured) (map[string]any, bool) {
	return func(now *unstructured.Unstructured) (map[string]any, bool) {
		e := to.Entry
		if now.GetUID() != e.UID || !sameAddresses(now, e.Status.GetAddresses()) {
			return nil, false // news of it is on its way
		}
		list := make([]any, 0, len(to.Addresses))
		for _, h := range to.Addresses {
			list = append(list, map[string]any{"host": h.Host, "value": h.Address.String()})
		}
		return map[string]any{"addresses": list}, true
	}
}

// note remembers what was written.
func (a *addresses) note(to translate.Allocation) {
	w := written{uid: to.Entry.UID, at: time.Now(), status: statusOf(to)}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.written[to.Entry.Namespace+"/"+to.Entry.Name] = w
}

// sameAddresses reports whether an object's status says these addresses.
func sameAddresses(now *unstructured.Unstructured, want []*apinetworking.ServiceEntryAddress) bool {
	list, _, err := unstructured.NestedSlice(now.Object, "status", "addresses")
	if err != nil {
		return len(want) == 0 // what is no list was read as none
	}
	return slices.EqualFunc(list, want, func(a any, b *apinetworking.ServiceEntryAddress) bool {
		m, ok := a.(map[string]any)
		if !ok {
			return false
		}
		host, _ := m["host"].(string)
		value, _ := m["value"].(string)
		return host == b.GetHost() && value == b.GetValue()
	})
}
