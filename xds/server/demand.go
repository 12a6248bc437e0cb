package server

import (
	"maps"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Limits of what one client may be subscribed to by name. What all names have together is
// that of as many as there may be, of the ordinary length.
const (
	maxNames     = 100_000
	maxNameSize  = 1 << 10
	maxNamesSize = 8 << 20
)

// demand is a subscription to some addresses rather than all: to what runs on the
// client's node, and to names. A name is a resource's or an address's, "network/ip".
// That of a service brings its workloads, now and later, as far as the client does not have
// them: services in use are asked for again and again. A name under which there is
// nothing is answered as removed; it is remembered, and what comes to have it is sent.
// An address that is nobody's, but in the range of a service, is both: removed, and the
// service is sent.
//
// Who gives a name back and asks for it in the next message wants a new answer, and is not
// told between the two that what it stands for is gone.
type demand struct {
	node  string
	names map[string]struct{}
	size  int                 // of all names
	asked map[string]struct{} // not answered yet
	left  map[string]struct{} // names that the last message gave back
	has   map[string]string   // name → version of what the client has
	at    *resources          // that the client is at
	less  bool                // there are fewer names since
}

// onDemand reports whether a first request is for less than everything: it names
// something, or subscribes to everything and unsubscribes in one message.
func onDemand(req *discovery.DeltaDiscoveryRequest) bool {
	all := slices.Contains(req.GetResourceNamesSubscribe(), "*")
	if all && slices.Contains(req.GetResourceNamesUnsubscribe(), "*") {
		return true
	}
	return !all && len(req.GetResourceNamesSubscribe()) > 0
}

// newDemand takes the first request. What the client has from an earlier stream it is
// subscribed to without saying so again.
func newDemand(req *discovery.DeltaDiscoveryRequest) (*demand, error) {
	d := &demand{
		node:  req.GetNode().GetMetadata().GetFields()["NODE_NAME"].GetStringValue(),
		names: make(map[string]struct{}), asked: make(map[string]struct{}), left: make(map[string]struct{}), has: make(map[string]string),
	}
	for name, version := range req.GetInitialResourceVersions() {
		if err := d.add(name); err != nil {
			return nil, err
		}
		if version != "" { // else it was asked for and had not come
			d.has[name] = version
			delete(d.asked, name)
		}
	}
	return d, d.change(req)
}

// change takes the names in a request.
func (d *demand) change(req *discovery.DeltaDiscoveryRequest) error {
	d.forget(req.GetResourceNamesSubscribe())
	for _, name := range req.GetResourceNamesUnsubscribe() {
		if _, known := d.names[name]; known {
			d.left[name] = struct{}{}
		}
		delete(d.asked, name)
	}
	for _, name := range req.GetResourceNamesSubscribe() {
		if name == "*" {
			continue // with the unsubscription that makes it on demand
		}
		if err := d.add(name); err != nil {
			return err
		}
	}
	maps.DeleteFunc(d.left, func(name string, _ struct{}) bool { _, again := d.asked[name]; return again })
	return nil
}

// forget drops the names that the message before gave back, but for those that this one
// asks for.
func (d *demand) forget(but []string) {
	if len(d.left) == 0 {
		return
	}
	again := make(map[string]struct{}, len(but))
	for _, name := range but {
		again[name] = struct{}{}
	}
	for name := range d.left {
		if _, kept := again[name]; !kept {
			delete(d.names, name)
			d.size -= len(name)
			d.less = true
		}
	}
	clear(d.left)
}

func (d *demand) add(name string) error {
	if len(name) > maxNameSize {
		return status.Errorf(codes.InvalidArgument, "a name of %d bytes, the limit is %d", len(name), maxNameSize)
	}
	if _, known := d.names[name]; !known {
		if len(d.names) >= maxNames || d.size+len(name) > maxNamesSize {
			return status.Errorf(codes.ResourceExhausted, "one client may subscribe to %d names of %d bytes together; to follow more, subscribe to everything (XDS_ON_DEMAND=false)",
				maxNames, maxNamesSize)
		}
		d.names[name] = struct{}{}
		d.size += len(name)
	}
	d.asked[name] = struct{}{}
	return nil
}

// step is what brings the client to a snapshot, and the answers to what it asked for. Of
// a client that is there already only what it asked for is looked at.
func (d *demand) step(to *Snapshot) step {
	x, all, names := to.index(), to.types[addresses], d.names
	whole := d.at != all || d.less
	if !whole {
		names = d.asked
	}
	d.at, d.less = all, false
	exists := func(name string) bool { _, ok := all.byName[name]; return ok }
	wanted := make(map[string]bool) // → send it though the client has it
	var s step
	if whole {
		for _, name := range x.byNode[d.node] {
			wanted[name] = false
		}
	}
	for name := range names {
		found, exact := x.find(name, exists)
		_, asked := d.asked[name]
		for _, n := range found {
			wanted[n] = wanted[n] || asked
			for _, member := range x.members[n] {
				if _, known := wanted[member]; !known {
					wanted[member] = false // what it has of them is no answer
				}
			}
		}
		if !exact && asked {
			s.gone = append(s.gone, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		r, ok := all.byName[name]
		if !ok {
			continue // two had one name, and this one is not served
		}
		if version, has := d.has[name]; wanted[name] || !has || version != r.version {
			s.send = append(s.send, r.called(x.aliases[name]))
		}
	}
	for name := range d.has {
		if !whole {
			break
		}
		if _, still := wanted[name]; !still {
			s.gone = append(s.gone, name)
		}
	}
	slices.Sort(s.gone)
	s.gone = slices.Compact(s.gone)
	return s
}

// took notes that the last step was sent.
func (d *demand) took(s step) {
	for _, r := range s.send {
		d.has[r.name] = r.version
	}
	for _, name := range s.gone {
		delete(d.has, name)
	}
	clear(d.asked)
}
