package server

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// companion is how long the first answer about addresses waits for the client to
// subscribe to policies as well, which clients do in their next message: policies
// are to arrive first.
const companion = 100 * time.Millisecond

// session is one client's side of the protocol, without I/O: requests go in, responses
// come out. Of the snapshot that its client is at it holds the resources, whose values
// later ones share, and not the model: a client that takes its time keeps no mesh in
// memory. Its own are only the names that the client gave when it subscribed, which the
// size of a message bounds, and those that it subscribes to one by one (demand).
type session struct {
	opened     time.Time
	ackTimeout time.Duration
	subs       [kinds]subscription
	nonces     uint64
}

// subscription is one type on one stream:
//
//	absent → first (subscribed, nothing answered yet) → current or behind
//
// pending is set in any of the last two while a response awaits its answer. No second
// one is sent meanwhile: the client sets the pace.
type subscription struct {
	active   bool
	first    bool
	told     told       // what the client said it has; until the first response
	toldSize int64      // of that in memory
	at       *resources // what it has since, once it has taken what was sent
	leaving  []string   // policies that are gone but not removed at the client yet
	demand   *demand    // of addresses, if not of all
	pending  string     // nonce of the response in flight
	since    time.Time  // of pending
}

// rejection is what a client said about a response that it did not take.
type rejection struct {
	typeURL, message string
}

func newSession(now time.Time, ackTimeout time.Duration) *session {
	return &session{opened: now, ackTimeout: ackTimeout}
}

// request takes a message from the client. It returns a rejection if it is one, and
// an error, with a gRPC status, if the stream must end.
func (s *session) request(req *discovery.DeltaDiscoveryRequest) (*rejection, error) {
	k, ok := kindOf(req.GetTypeUrl())
	if !ok {
		return nil, status.Errorf(codes.InvalidArgument, "type %.100q is not served here: only %s and %s are", req.GetTypeUrl(), AddressType, AuthorizationType)
	}
	sub := &s.subs[k]
	if !sub.active {
		return nil, sub.open(k, req)
	}
	if err := sub.resubscribe(req); err != nil {
		return nil, err
	}
	if sub.pending == "" || req.GetResponseNonce() != sub.pending {
		return nil, nil // about an older response, or only a repeated subscription
	}
	sub.pending = ""
	if req.GetErrorDetail() == nil {
		return nil, nil
	}
	// What the client did not take is sent again when it changes, and not before: it
	// would not take it the second time either.
	return &rejection{typeURL: req.GetTypeUrl(), message: req.GetErrorDetail().GetMessage()}, nil
}

// open takes the first request of a type.
func (sub *subscription) open(k kind, req *discovery.DeltaDiscoveryRequest) error {
	*sub = subscription{active: true, first: true, toldSize: toldSize(req.GetInitialResourceVersions())}
	if k == addresses && onDemand(req) {
		var err error
		sub.demand, err = newDemand(req)
		return err
	}
	sub.told = req.GetInitialResourceVersions()
	return sub.resubscribe(req)
}

// resubscribe takes the names in a request. To policies nobody subscribes by name: a
// workload does not name all that guard it.
func (sub *subscription) resubscribe(req *discovery.DeltaDiscoveryRequest) error {
	if sub.demand != nil {
		return sub.demand.change(req)
	}
	for _, names := range [][]string{req.GetResourceNamesSubscribe(), req.GetResourceNamesUnsubscribe()} {
		for _, name := range names {
			if name != "*" {
				return status.Errorf(codes.InvalidArgument, "%.100q: this stream is subscribed to everything of the type, and to nothing by name", name)
			}
		}
	}
	if len(req.GetResourceNamesUnsubscribe()) > 0 {
		return status.Error(codes.InvalidArgument, "a subscription to everything of a type cannot be taken back: end the stream instead")
	}
	return nil
}

// next returns the response that brings the client closer to the newest snapshot, nil
// when there is none to send now. Call it again after it returned one.
func (s *session) next(newest *Snapshot, now time.Time) *response {
	policy, address := &s.subs[policies], &s.subs[addresses]
	if policy.due(policies, newest) {
		step := policy.step(policies, newest)
		policy.leave(newest, step.gone)
		if r := s.advance(policies, newest, step.send, nil, now); r != nil {
			return r
		}
	}
	policyFirst := policy.active && policy.at != newest.types[policies] || !policy.active && now.Sub(s.opened) < companion
	if address.due(addresses, newest) && !policyFirst {
		step := address.step(addresses, newest)
		if address.first {
			step.gone = slices.DeleteFunc(step.gone, newest.isPolicy)
		}
		if address.demand != nil {
			address.demand.took(step)
		}
		if r := s.advance(addresses, newest, step.send, step.gone, now); r != nil {
			return r
		}
	}
	addressFirst := address.active && address.at != newest.types[addresses]
	if policy.active && policy.pending == "" && len(policy.leaving) > 0 && !addressFirst {
		gone := policy.leaving
		policy.leaving = nil
		return s.advance(policies, newest, nil, gone, now)
	}
	return nil
}

// due reports whether the client may and should be sent the difference to a snapshot.
func (sub *subscription) due(k kind, newest *Snapshot) bool {
	return sub.active && sub.pending == "" && (sub.at != newest.types[k] || sub.demand != nil && len(sub.demand.asked) > 0)
}

// step is the difference to a snapshot, which is shared unless the client said what it has.
func (sub *subscription) step(k kind, to *Snapshot) step {
	if sub.demand != nil {
		return sub.demand.step(to)
	}
	if sub.first && len(sub.told) > 0 {
		return diff(sub.told, to.types[k])
	}
	if sub.first {
		return to.types[k].from(nothing)
	}
	return to.types[k].from(sub.at)
}

// leave notes policies to remove once no workload names them any more.
func (sub *subscription) leave(newest *Snapshot, gone []string) {
	names := make(map[string]bool, len(gone)+len(sub.leaving))
	for _, list := range [][]string{sub.leaving, gone} {
		for _, name := range list {
			if _, back := newest.types[policies].byName[name]; back || sub.first && newest.isAddress(name) {
				continue
			}
			names[name] = true
		}
	}
	sub.leaving = slices.Sorted(maps.Keys(names))
}

// isPolicy and isAddress keep a client that gave names of one type when it subscribed
// to the other from being told that they are gone.
func (s *Snapshot) isPolicy(name string) bool {
	_, ok := s.types[policies].byName[name]
	return ok
}

func (s *Snapshot) isAddress(name string) bool {
	_, ok := s.types[addresses].byName[name]
	return ok
}

// advance moves a subscription to a snapshot. The first time the client is answered
// even if there is nothing to say: it waits for that.
func (s *session) advance(k kind, to *Snapshot, send []*resource, gone []string, now time.Time) *response {
	sub := &s.subs[k]
	first := sub.first
	sub.first, sub.told, sub.at = false, nil, to.types[k]
	if len(send) == 0 && len(gone) == 0 && !first {
		return nil
	}
	s.nonces++
	// Nobody can answer what he has not received.
	sub.pending, sub.since = fmt.Sprintf("%s-%d-%x", to.version, s.nonces, rand.Uint64()), now
	return &response{kind: k, version: to.version, nonce: sub.pending, resources: send, removed: gone}
}

// deadline is when the session must be looked at again though nothing has happened,
// and whether it is overdue: the client has let a response go unanswered for too long.
func (s *session) deadline(now time.Time) (at time.Time, overdue bool) {
	if grace := s.opened.Add(companion); now.Before(grace) {
		at = grace
	}
	for i := range s.subs {
		sub := &s.subs[i]
		if sub.pending == "" {
			continue
		}
		limit := sub.since.Add(s.ackTimeout)
		overdue = overdue || !now.Before(limit)
		if at.IsZero() || limit.Before(at) {
			at = limit
		}
	}
	return at, overdue
}
