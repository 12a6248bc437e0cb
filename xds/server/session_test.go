package server

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/warren-mesh/warren/xds/workload"
)

// world is a mesh for tests: workload uid → its policies, and policy name → action.
type world struct {
	workloads map[string][]string
	policies  map[string]workload.Action
}

func (w world) snapshot(t testing.TB, prev *Snapshot) *Snapshot {
	t.Helper()
	var m Model
	for uid, names := range w.workloads {
		m.Workloads = append(m.Workloads, &workload.Workload{UID: uid, Policies: names})
	}
	for name, action := range w.policies {
		m.Policies = append(m.Policies, &workload.Policy{Name: name, Namespace: "ns", Action: action})
	}
	s, err := NewSnapshot(prev, m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// model is a client: it applies what it is sent and remembers what is unanswered.
type model struct {
	t     testing.TB
	s     *session
	now   time.Time
	has   [kinds]map[string]string
	owing []*response
	log   []string // one line a response
}

func newModel(t testing.TB) *model {
	now := time.Unix(1000, 0)
	return &model{t: t, s: newSession(now, time.Minute), now: now, has: [kinds]map[string]string{{}, {}}}
}

func (m *model) subscribe(k kind, initial map[string]string) {
	m.t.Helper()
	if initial != nil {
		m.has[k] = maps.Clone(initial)
	}
	m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: k.typeURL(), InitialResourceVersions: initial})
}

func (m *model) request(r *discovery.DeltaDiscoveryRequest) *rejection {
	m.t.Helper()
	rejected, err := m.s.request(r)
	if err != nil {
		m.t.Fatalf("request refused: %v", err)
	}
	return rejected
}

// pull takes everything there is to send.
func (m *model) pull(newest *Snapshot) {
	for r := m.s.next(newest, m.now); r != nil; r = m.s.next(newest, m.now) {
		k := r.kind
		line := []string{map[kind]string{policies: "policies", addresses: "addresses"}[k]}
		for _, res := range r.resources {
			m.has[k][res.name] = res.version
			line = append(line, "+"+res.name)
		}
		for _, name := range r.removed {
			delete(m.has[k], name)
			line = append(line, "-"+name)
		}
		m.log = append(m.log, strings.Join(line, " "))
		m.owing = append(m.owing, r)
	}
}

func (m *model) ack() {
	for _, r := range m.owing {
		m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: r.kind.typeURL(), ResponseNonce: r.nonce})
	}
	m.owing = nil
}

// settle pulls and acks until nothing is left.
func (m *model) settle(newest *Snapshot) {
	m.pull(newest)
	for len(m.owing) > 0 {
		m.ack()
		m.pull(newest)
	}
}

func (m *model) wantLog(lines ...string) {
	m.t.Helper()
	if d := cmp.Diff(lines, m.log); d != "" {
		m.t.Errorf("responses (-want +got):\n%s", d)
	}
	m.log = nil
}

func (m *model) wantHas(s *Snapshot) {
	m.t.Helper()
	for k := range kind(kinds) {
		want := make(map[string]string)
		for name, r := range s.types[k].byName {
			want[name] = r.version
		}
		if d := cmp.Diff(want, m.has[k]); d != "" {
			m.t.Errorf("client's %s (-want +got):\n%s", k.typeURL(), d)
		}
	}
}

func TestFirstAnswer(t *testing.T) {
	empty := world{}.snapshot(t, nil)
	full := world{map[string][]string{"w1": nil, "w2": nil}, map[string]workload.Action{"p": 0}}.snapshot(t, nil)
	for name, c := range map[string]struct {
		snapshot *Snapshot
		want     []string
	}{
		"empty mesh is answered all the same": {empty, []string{"policies", "addresses"}},
		"everything, policies first":          {full, []string{"policies +ns/p", "addresses +w1 +w2"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newModel(t)
			m.subscribe(addresses, nil) // in the order of real clients
			m.pull(c.snapshot)
			m.wantLog() // addresses wait for the policies' subscription
			m.subscribe(policies, nil)
			m.settle(c.snapshot)
			m.wantLog(c.want...)
			m.wantHas(c.snapshot)
		})
	}
}

func TestAddressesAlone(t *testing.T) {
	snap := world{workloads: map[string][]string{"w": nil}}.snapshot(t, nil)
	m := newModel(t)
	m.subscribe(addresses, nil)
	at, overdue := m.s.deadline(m.now)
	if overdue || !at.Equal(m.now.Add(companion)) {
		t.Fatalf("deadline = %v, %v, want the end of the wait for policies", at, overdue)
	}
	m.now = at
	m.settle(snap)
	m.wantLog("addresses +w")
}

func TestReconnect(t *testing.T) {
	snap := world{map[string][]string{"same": nil, "changed": {"ns/p"}, "new": nil}, map[string]workload.Action{"p": 1}}.snapshot(t, nil)
	m := newModel(t)
	m.subscribe(policies, map[string]string{"ns/p": snap.types[policies].byName["ns/p"].version, "ns/gone": "1", "same": "strayed here from the other type"})
	m.subscribe(addresses, map[string]string{
		"same": snap.types[addresses].byName["same"].version, "changed": "0", "gone": "1", "ns/p": "strayed here from the other type"})
	m.settle(snap)
	m.wantLog("policies", "addresses +changed +new -gone", "policies -ns/gone")
}

func TestChangesKeepPoliciesAround(t *testing.T) {
	one := world{map[string][]string{"w": {"ns/old"}}, map[string]workload.Action{"old": 0}}.snapshot(t, nil)
	two := world{map[string][]string{"w": {"ns/new"}}, map[string]workload.Action{"new": 0}}.snapshot(t, one)
	m := newModel(t)
	m.subscribe(addresses, nil)
	m.subscribe(policies, nil)
	m.settle(one)
	m.log = nil
	m.settle(two)
	m.wantLog("policies +ns/new", "addresses +w", "policies -ns/old")
	m.settle(two)
	m.wantLog()
	m.settle(one)
	m.wantLog("policies +ns/old", "addresses +w", "policies -ns/new")
}

// A policy is not removed while the client has not answered about addresses: it may still have a workload that names it.
func TestRemovalWaitsForAddresses(t *testing.T) {
	one := world{map[string][]string{"w": {"ns/p"}}, map[string]workload.Action{"p": 0}}.snapshot(t, nil)
	two := world{map[string][]string{"w": {"ns/p"}, "v": nil}, map[string]workload.Action{"p": 0}}.snapshot(t, one)
	three := world{map[string][]string{"w": nil, "v": nil}, nil}.snapshot(t, two)
	m := newModel(t)
	m.subscribe(addresses, nil)
	m.subscribe(policies, nil)
	m.settle(one)
	m.log = nil
	m.pull(two)
	m.pull(three)
	m.wantLog("addresses +v")
	m.settle(three)
	m.wantLog("addresses +w", "policies -ns/p")
}

// A policy that comes back before its removal was sent is sent anew, not removed.
func TestPolicyComesBack(t *testing.T) {
	one := world{map[string][]string{"w": nil}, map[string]workload.Action{"p": 0}}.snapshot(t, nil)
	two := world{map[string][]string{"w": {"x"}}, nil}.snapshot(t, one)
	three := world{map[string][]string{"w": {"x"}}, map[string]workload.Action{"p": 1}}.snapshot(t, two)
	m := newModel(t)
	m.subscribe(addresses, nil)
	m.subscribe(policies, nil)
	m.settle(one)
	m.log = nil
	m.pull(two) // addresses and then the removal; its answer is not given yet
	m.wantLog("addresses +w", "policies -ns/p")
	m.pull(three)
	m.wantLog()
	m.ack()
	m.settle(three)
	m.wantLog("policies +ns/p")
	m.wantHas(three)
}

func TestOneInFlight(t *testing.T) {
	var snaps []*Snapshot
	for i := range 5 {
		var prev *Snapshot
		if i > 0 {
			prev = snaps[i-1]
		}
		snaps = append(snaps, world{workloads: map[string][]string{fmt.Sprint("w", i): nil}}.snapshot(t, prev))
	}
	m := newModel(t)
	m.subscribe(policies, nil)
	m.subscribe(addresses, nil)
	for _, s := range snaps[:4] {
		m.pull(s) // never answers
	}
	m.wantLog("policies", "addresses +w0")
	m.ack()
	m.pull(snaps[4])
	m.wantLog("addresses +w4 -w0")

	if _, overdue := m.s.deadline(m.now.Add(time.Minute - 1)); overdue {
		t.Error("overdue before the time to answer has passed")
	}
	if _, overdue := m.s.deadline(m.now.Add(time.Minute)); !overdue {
		t.Error("not overdue after the time to answer has passed")
	}
}

func TestNACK(t *testing.T) {
	one := world{workloads: map[string][]string{"bad": nil}}.snapshot(t, nil)
	two := world{workloads: map[string][]string{"bad": nil, "other": nil}}.snapshot(t, one)
	three := world{workloads: map[string][]string{"bad": {"mended"}, "other": nil}}.snapshot(t, two)
	m := newModel(t)
	m.subscribe(policies, nil)
	m.subscribe(addresses, nil)
	m.pull(one)
	nack := &discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResponseNonce: m.owing[1].nonce, ErrorDetail: &status.Status{Message: "bad: no"}}
	if r := m.request(nack); r == nil || r.message != "bad: no" {
		t.Errorf("rejection = %+v, want the client's words", r)
	}
	if r := m.request(nack); r != nil {
		t.Errorf("the same nonce again gave %+v, want it ignored as stale", r)
	}
	m.owing = m.owing[:1]
	m.log = nil
	m.settle(one)
	m.wantLog() // not sent again
	m.settle(two)
	m.wantLog("addresses +other")
	m.settle(three)
	m.wantLog("addresses +bad")
}

func TestStaleNonce(t *testing.T) {
	one := world{}.snapshot(t, nil)
	two := world{workloads: map[string][]string{"w": nil}}.snapshot(t, one)
	m := newModel(t)
	m.subscribe(policies, nil)
	m.subscribe(addresses, nil)
	m.pull(one)
	m.log = nil
	policy := m.owing[0]
	m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AuthorizationType, ResponseNonce: policy.nonce})
	for _, nonce := range []string{"", "elsewhere", policy.nonce} {
		m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResponseNonce: nonce})
		m.pull(two)
	}
	m.wantLog()
	m.settle(two)
	m.wantLog("addresses +w")
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		req  *discovery.DeltaDiscoveryRequest
		code codes.Code
		says string
	}{
		"by name":      {&discovery.DeltaDiscoveryRequest{TypeUrl: AuthorizationType, ResourceNamesSubscribe: []string{"ns/p"}}, codes.InvalidArgument, "by name"},
		"taken back":   {&discovery.DeltaDiscoveryRequest{TypeUrl: AuthorizationType, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}}, codes.InvalidArgument, "taken back"},
		"unknown type": {&discovery.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.Cluster"}, codes.InvalidArgument, "envoy.Cluster"},
		"no type":      {&discovery.DeltaDiscoveryRequest{}, codes.InvalidArgument, "not served"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newSession(time.Now(), time.Minute).request(c.req)
			if grpcstatus.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("err = %v, want %v and %q", err, c.code, c.says)
			}
		})
	}
	if _, err := newSession(time.Now(), time.Minute).request(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"*"}}); err != nil {
		t.Errorf("explicit wildcard refused: %v", err)
	}
}

func TestSnapshotVersions(t *testing.T) {
	w := world{map[string][]string{"w1": {"a"}, "w2": nil}, map[string]workload.Action{"p": 0}}
	one, again := w.snapshot(t, nil), w.snapshot(t, nil)
	if one.Version() != again.Version() {
		t.Errorf("versions %s and %s of equal snapshots differ", one.Version(), again.Version())
	}
	w.workloads = map[string][]string{"w1": {"b"}, "w2": nil}
	two := w.snapshot(t, one)
	if two.Version() == one.Version() {
		t.Error("the version did not change with the contents")
	}
	if two.types[addresses].byName["w2"] != one.types[addresses].byName["w2"] {
		t.Error("an equal resource is not shared with the snapshot before")
	}
	if a, b := two.types[addresses].byName["w1"].version, one.types[addresses].byName["w1"].version; a == b || a == "" {
		t.Errorf("versions of the changed resource are %q and %q", a, b)
	}
	s, err := NewSnapshot(nil, Model{
		Workloads: []*workload.Workload{{}, {UID: "w"}},
		Policies:  []*workload.Policy{{Name: "p", Namespace: "n"}, {Name: "p", Namespace: "n"}},
	})
	if err == nil || !strings.Contains(err.Error(), "two resources named n/p") || !strings.Contains(err.Error(), "without a name") {
		t.Errorf("err = %v, want both mistakes", err)
	}
	if !s.isAddress("w") || !s.isPolicy("n/p") {
		t.Error("what can be served is not")
	}
}

// FuzzSession plays a client that sends what it likes. Whatever that is, the session
// does not break, holds at most one response of a type in flight, and a client that
// then answers properly ends with the newest snapshot.
func FuzzSession(f *testing.F) {
	f.Add([]byte("s0s1aapq"))
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11})
	f.Add([]byte("\x00\x10\x20\x30\x40\x50\x60\x70\x80\x90\xa0\xb0\xc0\xd0\xe0\xf0"))
	f.Fuzz(func(t *testing.T, script []byte) {
		newest := world{}.snapshot(t, nil)
		m := newModel(t)
		subscribed := [kinds]bool{}
		for i, b := range script[:min(len(script), 64)] {
			k := kind(b>>3) % kind(kinds)
			switch b % 8 {
			case 0, 1:
				newest = world{map[string][]string{fmt.Sprint("w", b>>5): {fmt.Sprint(i % 3)}, "w": nil},
					map[string]workload.Action{fmt.Sprint("p", b>>6): workload.Action(i % 2)}}.snapshot(t, newest)
			case 2:
				if !subscribed[k] {
					subscribed[k] = true
					m.subscribe(k, map[string]string{[]string{policies: "ns/p", addresses: "w"}[k] + fmt.Sprint(b>>6): "1"})
				}
			case 3:
				m.request(&discovery.DeltaDiscoveryRequest{TypeUrl: k.typeURL(), ResponseNonce: fmt.Sprint(b)})
				subscribed[k] = true
			case 4:
				m.ack()
			case 5:
				m.now = m.now.Add(time.Duration(b) * time.Millisecond)
			default:
				m.pull(newest)
			}
			inFlight := map[kind]int{}
			for _, r := range m.owing {
				if inFlight[r.kind]++; inFlight[r.kind] > 1 {
					t.Fatalf("two responses of %s in flight", r.kind.typeURL())
				}
			}
		}
		m.now = m.now.Add(time.Second)
		for k := range kind(kinds) {
			if !subscribed[k] {
				m.subscribe(k, nil)
			}
		}
		m.settle(newest)
		m.wantHas(newest)
	})
}

// FuzzRequest feeds bytes as a request to a session in each state.
func FuzzRequest(f *testing.F) {
	for _, r := range []*discovery.DeltaDiscoveryRequest{
		{TypeUrl: AddressType}, {TypeUrl: AuthorizationType, ResponseNonce: "x"},
		{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}},
		{TypeUrl: AddressType, InitialResourceVersions: map[string]string{"w": "1", "": ""}},
		{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"w", "/10.0.0.1"}, ResourceNamesUnsubscribe: []string{"w"}},
		{TypeUrl: AddressType, ErrorDetail: &status.Status{Message: "no"}},
	} {
		b, err := marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	snap := world{map[string][]string{"w": nil}, map[string]workload.Action{"p": 0}}.snapshot(f, nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := unmarshal(data)
		if err != nil {
			return
		}
		s := newSession(time.Unix(0, 0), time.Minute)
		for range 3 {
			if _, err := s.request(req); err != nil {
				if grpcstatus.Code(err) == codes.Unknown {
					t.Fatalf("refused without a status: %v", err)
				}
				return
			}
			for i := 0; s.next(snap, time.Unix(1, 0)) != nil; i++ {
				if i > 3 {
					t.Fatal("responses without end")
				}
			}
		}
	})
}

func TestDiff(t *testing.T) {
	snap := world{workloads: map[string][]string{"a": nil, "b": {"x"}, "c": nil}}.snapshot(t, nil)
	want := snap.types[addresses]
	for name, c := range map[string]struct {
		have       holding
		send, gone []string
	}{
		"nothing":             {told{}, []string{"a", "b", "c"}, nil},
		"nil":                 {told(nil), []string{"a", "b", "c"}, nil},
		"the same":            {want, nil, nil},
		"equal, not the same": {&resources{byName: maps.Clone(want.byName)}, nil, nil},
		"some":                {told{"a": want.byName["a"].version, "b": "old", "z": "", "y": "1"}, []string{"b", "c"}, []string{"y", "z"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := diff(c.have, want)
			var names []string
			for _, r := range got.send {
				names = append(names, r.name)
			}
			if !slices.Equal(names, c.send) || !slices.Equal(got.gone, c.gone) {
				t.Errorf("diff = send %v, gone %v, want %v, %v", names, got.gone, c.send, c.gone)
			}
		})
	}
}

func TestStepsAreShared(t *testing.T) {
	one := world{workloads: map[string][]string{"a": nil}}.snapshot(t, nil)
	two := world{workloads: map[string][]string{"b": nil}}.snapshot(t, one)
	from, to := one.types[addresses], two.types[addresses]
	first, again := to.from(from), to.from(from)
	if len(first.send) != 1 || len(first.gone) != 1 || &first.send[0] != &again.send[0] {
		t.Errorf("steps %v and %v, want one step that is shared", first, again)
	}
	if s := to.from(to); s.send != nil || s.gone != nil {
		t.Errorf("step to itself = %v", s)
	}
	for i := range 2 * maxSteps {
		to.from(world{workloads: map[string][]string{fmt.Sprint(i): nil}}.snapshot(t, nil).types[addresses])
	}
	if len(to.steps) > maxSteps {
		t.Errorf("%d steps are remembered, at most %d may be", len(to.steps), maxSteps)
	}
}

// TestNonceIsNotGuessed: an answer shows that a response has been taken.
func TestNonceIsNotGuessed(t *testing.T) {
	snap, seen := world{}.snapshot(t, nil), map[string]bool{}
	for range 100 {
		m := newModel(t)
		m.subscribe(policies, nil)
		seen[m.s.next(snap, m.now).nonce] = true
	}
	if len(seen) != 100 {
		t.Errorf("%d nonces for the first response of 100 streams", len(seen))
	}
}
