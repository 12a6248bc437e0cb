package client

import "github.com/warren-mesh/warren/xds/workload"

// The types, in the order in which they are asked for.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

// kind indexes what exists once for each type.
type kind uint8

const (
	addresses kind = iota
	policies
	kinds int = iota
)

func (k kind) typeURL() string {
	if k == addresses {
		return AddressType
	}
	return AuthorizationType
}

func kindOf[T string | []byte](typeURL T) (kind, bool) {
	switch string(typeURL) {
	case AddressType:
		return addresses, true
	case AuthorizationType:
		return policies, true
	}
	return 0, false
}

const (
	// maxResources and maxBytes are of one type. They are far above any mesh; beyond
	// them more is refused rather than the node's memory taken.
	maxResources = 1 << 20
	maxBytes     = 1 << 29
	// maxRefused names are remembered as refused.
	maxRefused = 4096
	// initialBudget is how much of a request may be spent on versions: Istio's
	// control plane and ours take requests of 4 MiB.
	initialBudget = 3 << 20
)

// ledger is what the store was given of one type. Its keys are the store's own
// names, which differ from those of xDS where a hostname has capitals.
type ledger struct {
	entries map[string]entry
	bytes   int // of all entries
	limit   limits
	// refused are policies that were not taken and of which there is no earlier
	// version nor a stand-in: nobody should wait for them.
	refused map[string]struct{}
	// retold says that a stream has begun whose first response names again what of refused
	// still exists: the control plane was told of nothing of it.
	retold bool
	// standIns counts those entries; they are refused policies, too.
	standIns int
	// unsaid are keys that did not fit into the request at the start of the
	// stream, or do not belong there. The first response repeats those of them that
	// still exist.
	unsaid map[string]struct{}
}

type entry struct {
	name    string // of xDS
	version string
	bytes   int32 // on the wire, and what is extra
	service bool  // else a workload; addresses only
	standIn bool  // for a policy that was refused: the control plane is not told of it
}

type limits struct{ resources, bytes int }

func newLedger(limit limits) *ledger {
	return &ledger{entries: map[string]entry{}, refused: map[string]struct{}{}, limit: limit}
}

// find is the key under which a resource is held, if it is.
func (l *ledger) find(name string) (key string, ok bool) { return find(l.entries, name) }

func find(entries map[string]entry, name string) (key string, ok bool) {
	if e, ok := entries[name]; ok && e.name == name {
		return name, true
	}
	h, isHost := workload.CutNamespacedHostname(name)
	if !isHost {
		return "", false
	}
	key = h.String()
	e, ok := entries[key]
	return key, ok && e.name == name
}

func holds(entries map[string]entry, name string) bool {
	_, ok := find(entries, name)
	return ok
}

// elsewhere says whether something with the entry's name may be held under another key than
// its own: a service whose name has capitals, or one that a workload is called like.
func (e entry) elsewhere(key string) bool {
	if e.service {
		return key != e.name
	}
	_, is := workload.CutNamespacedHostname(e.name)
	return is
}

// initial is what the control plane is told at the start of a stream. What does
// not fit is noted as unsaid.
func (l *ledger) initial(budget int) map[string]string {
	l.unsaid = nil
	if len(l.entries) == 0 {
		return nil
	}
	versions := make(map[string]string, len(l.entries))
	for key, e := range l.entries {
		size := len(e.name) + len(e.version) + 12 // tags and lengths
		if budget -= size; budget < 0 || e.standIn {
			if l.unsaid == nil {
				l.unsaid = map[string]struct{}{}
			}
			l.unsaid[key] = struct{}{}
			continue
		}
		versions[e.name] = e.version
	}
	return versions
}

// record notes a change that the store has taken.
func (l *ledger) record(c *change, rest *breath) {
	if l.retold {
		clear(l.refused)
		l.retold = false
	}
	fresh := len(l.entries)+len(l.refused) == 0
	for key := range c.gone {
		l.stand(l.entries[key], -1)
		l.bytes -= int(l.entries[key].bytes)
		delete(l.entries, key)
		delete(l.refused, key)
	}
	for _, name := range c.forgotten {
		delete(l.refused, name)
	}
	if fresh { // a whole mesh: there is no need to have it twice
		l.entries, l.bytes, l.standIns = c.set, c.growth.bytes, len(c.standIns)
	} else {
		l.enter(c.set, rest)
	}
	for _, name := range c.refusals.names {
		if _, held := l.find(name); !held && len(l.refused) < maxRefused {
			l.refused[name] = struct{}{}
		}
	}
	l.unsaid = nil
}

// enter notes what a change sets.
func (l *ledger) enter(set map[string]entry, rest *breath) {
	for key, e := range set {
		rest.item()
		old := l.entries[key]
		l.stand(old, -1)
		l.stand(e, 1)
		l.bytes += int(e.bytes - old.bytes)
		l.entries[key] = e
		delete(l.refused, key)
	}
}

func (l *ledger) stand(e entry, n int) {
	if e.standIn {
		l.standIns += n
	}
}

// unheld counts the refused resources of which there is no earlier version.
func (l *ledger) unheld() int { return l.standIns + len(l.refused) }
