package client

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"istio.io/istio/pkg/workloadapi/security"

	"github.com/warren-mesh/warren/xds/workload"
)

// tally writes down what an observer is told of what has taken effect.
type tally struct {
	Observer
	mu    sync.Mutex
	lines []string
}

func (o *tally) Applied(typeURL string, refused, unheld int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lines = append(o.lines, fmt.Sprint(strings.TrimPrefix(typeURL, "type.googleapis.com/istio."), " ", refused, " ", unheld))
}

func (o *tally) want(t *testing.T, lines ...string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Equal(o.lines, lines) {
		t.Errorf("told %q, want %q", o.lines, lines)
	}
	o.lines = nil
}

// lines is a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// count is how many lines have a text.
func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// conditional is a policy with a condition of a newer version.
func conditional(name string, action security.Action) *discovery.Resource {
	m := &security.Match{DestinationPorts: []uint32{80}}
	m.ProtoReflect().SetUnknown([]byte{0xa2, 0x06, 1, 'x'}) // field 100
	return withMatch(name, action, m)
}

// narrowed is a policy with a modifier of a newer version in a matcher's value.
func narrowed(name string, action security.Action) *discovery.Resource {
	account := &security.ServiceAccountMatch{Namespace: "ns", ServiceAccount: "sa"}
	account.ProtoReflect().SetUnknown([]byte{0xa2, 0x06, 1, 'x'})
	return withMatch(name, action, &security.Match{ServiceAccounts: []*security.ServiceAccountMatch{account}})
}

func withMatch(name string, action security.Action, m *security.Match) *discovery.Resource {
	return &discovery.Resource{Name: "ns/" + name, Version: "1", Resource: pack(AuthorizationType, &security.Authorization{
		Name: name, Namespace: "ns", Scope: security.Scope_NAMESPACE, Action: action,
		Groups: []*security.Group{{Rules: []*security.Rules{{Matches: []*security.Match{m}}}}},
	})}
}

// TestUnknownConditions: a policy that says more than is understood guards by refusing
// everything, is counted, and named in the log.
func TestUnknownConditions(t *testing.T) {
	o, log := &tally{Observer: newObserver()}, &lines{}
	cfg := Config{Address: "http://localhost:1", Observer: o, Log: slog.New(slog.NewTextHandler(log, nil))}
	bubbleWith(t, cfg, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		f.push(response(AuthorizationType, "p1", conditional("deny", security.Action_DENY), conditional("allow", security.Action_ALLOW),
			narrowed("narrow", security.Action_ALLOW), policy("good", "1")))
		f.push(response(AddressType, "a1", pod("w", "1")))
		o.want(t, "security.Authorization 3 3", "workload.Address 0 0")
		for name, rules := range map[string]int{"deny": 1, "allow": 0, "narrow": 0} {
			p := store.View().Policy("ns/" + name)
			if p == nil || len(p.Rules) != rules || rules == 1 && len(p.Rules[0].Clauses) != 0 {
				t.Errorf("%s: %+v stands in its place", name, p)
			}
			if log.count("ns/"+name) == 0 {
				t.Errorf("%s is not named in the log", name)
			}
		}
		f.push(removal(AuthorizationType, "p2", "ns/deny", "ns/narrow"), response(AuthorizationType, "p3", badPolicy("good")))
		o.want(t, "security.Authorization 0 1", "security.Authorization 1 1")
		f.push(removal(AuthorizationType, "p4", "ns/allow"), response(AddressType, "a2", badPod("w", "2"), badPod("x", "1")))
		o.want(t, "security.Authorization 0 0", "workload.Address 2 1")
	})
}

// TestRefusedIsForgotten: a refused policy in whose place nothing stands, since it is for
// single workloads, is not counted any more once it is removed.
func TestRefusedIsForgotten(t *testing.T) {
	o := &tally{Observer: newObserver()}
	cfg := Config{Address: "http://localhost:1", Observer: o, Log: slog.New(slog.DiscardHandler)}
	bubbleWith(t, cfg, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		f.push(response(AuthorizationType, "p1", badSelector("one"), badSelector("two")))
		f.push(removal(AuthorizationType, "p2", "ns/one"))
		f.push(removal(AuthorizationType, "p3", "ns/two", "ns/never"))
		o.want(t, "security.Authorization 2 2", "security.Authorization 0 1", "security.Authorization 0 0")
	})
}

// badSelector is a policy for single workloads that is refused.
func badSelector(name string) *discovery.Resource {
	m := &security.Match{DestinationPorts: []uint32{80}}
	m.ProtoReflect().SetUnknown([]byte{0xa2, 0x06, 1, 'x'})
	return &discovery.Resource{Name: "ns/" + name, Version: "1", Resource: pack(AuthorizationType, &security.Authorization{
		Name: name, Namespace: "ns", Scope: security.Scope_WORKLOAD_SELECTOR,
		Groups: []*security.Group{{Rules: []*security.Rules{{Matches: []*security.Match{m}}}}},
	})}
}

// TestRefusedWhileAway: what was refused and is deleted while there is no stream is named
// by nobody. The next stream's first response tells what there is.
func TestRefusedWhileAway(t *testing.T) {
	s, o := newStub(t), &tally{Observer: newObserver()}
	c, _ := newClient(t, Config{Address: s.Address, Observer: o})
	run(t, c)
	x, _, _ := s.subscribed()
	x.push(response(AuthorizationType, "p1", badSelector("one"), badSelector("two")))
	x.push(response(AuthorizationType, "p2", policy("a", "1")))
	x.end <- nil
	x, _, _ = s.subscribed()
	x.push(response(AuthorizationType, "p1", badSelector("two")))
	x.push(response(AuthorizationType, "p2"))
	x.end <- nil
	x, _, _ = s.subscribed()
	x.push(response(AuthorizationType, "p1"))
	const kind = "security.Authorization "
	o.want(t, kind+"2 2", kind+"0 2", kind+"1 1", kind+"0 1", kind+"0 0")
}

// TestComplaints: the log tells of what is refused, and goes on to do so, however much
// there is: the first ones all, then one a second.
func TestComplaints(t *testing.T) {
	log := &lines{}
	cfg := Config{Address: "http://localhost:1", Log: slog.New(slog.NewTextHandler(log, nil))}
	bubbleWith(t, cfg, func(t *testing.T, f *fakeStream, c *Client, store *workload.Store) {
		f.push(response(AuthorizationType, "p"), response(AddressType, "a"))
		refuse := func(n int) {
			for i := range n {
				f.push(response(AddressType, fmt.Sprint(i), badPod("w", "1")))
			}
		}
		const text = "resources refused"
		refuse(20)
		if n := log.count(text); n != 20 {
			t.Errorf("%d lines of 20", n)
		}
		refuse(100)
		if n := log.count(text); n != 20 {
			t.Errorf("%d lines within a second", n)
		}
		for second := range 3 {
			time.Sleep(time.Second)
			refuse(5)
			if n := log.count(text); n != 21+second {
				t.Errorf("%d lines after %d seconds", n, second+1)
			}
		}
	})
}
