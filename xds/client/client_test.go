package client

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"istio.io/istio/pkg/workloadapi/security"

	"github.com/warren-mesh/warren/xds/workload"
)

func TestSubscribes(t *testing.T) {
	s := newStub(t)
	tokens := 0
	c, store := newClient(t, Config{
		Address: s.Address,
		Token:   func() (string, error) { tokens++; return " t" + strings.Repeat("0", tokens) + "\n", nil },
		Headers: [][2]string{{"X-Team", "mesh"}},
		Node: Node{
			IP: "10.0.0.9", PodName: "p", Namespace: "sys", NodeName: "n1", ClusterID: "c1",
			Metadata: map[string]any{"ISTIO_VERSION": "1.31", "NAME": "overruled"},
		},
	})
	run(t, c)
	x, address, policy := s.subscribed()
	if address.GetTypeUrl() != AddressType || policy.GetTypeUrl() != AuthorizationType {
		t.Errorf("asked for %s, then %s", address.GetTypeUrl(), policy.GetTypeUrl())
	}
	if n := len(address.GetResourceNamesSubscribe()) + len(policy.GetResourceNamesSubscribe()) + len(address.GetInitialResourceVersions()); n > 0 {
		t.Errorf("%d names in the first requests, want none: everything", n)
	}
	for _, r := range []interface{ GetId() string }{address.GetNode(), policy.GetNode()} {
		if got, want := r.GetId(), "ztunnel~10.0.0.9~p.sys~sys.svc.cluster.local"; got != want {
			t.Errorf("node %q, want %q", got, want)
		}
	}
	wantMeta := map[string]any{
		"NAME": "p", "NAMESPACE": "sys", "INSTANCE_IPS": "10.0.0.9", "NODE_NAME": "n1", "CLUSTER_ID": "c1", "ISTIO_VERSION": "1.31",
	}
	if d := cmp.Diff(wantMeta, address.GetNode().GetMetadata().AsMap()); d != "" {
		t.Error("metadata (-want +got):", d)
	}
	for name, want := range map[string]string{"authorization": "Bearer t0", "clusterid": "c1", "x-team": "mesh"} {
		if got := x.headers.Get(name); len(got) != 1 || got[0] != want {
			t.Errorf("header %s is %q, want %q", name, got, want)
		}
	}
	if st := c.Status(); st.State != Connecting || isSynced(c) {
		t.Errorf("before a response: %+v", st)
	}
	x.push(response(AuthorizationType, "n1"))
	if st := c.Status(); st.State != Connected || st.LastSuccess.IsZero() || isSynced(c) {
		t.Errorf("after one type: %+v, synced %v", st, isSynced(c))
	}
	x.push(response(AddressType, "n2", pod("w", "1"), service("ns/s.example", "1")))
	<-c.Synced()
	if v := store.View(); v.WorkloadByUID("w") == nil || v.Service(workload.NamespacedHostname{Namespace: "ns", Hostname: "s.example"}) == nil {
		t.Error("acknowledged, but not in the store")
	}
	x.end <- status.Error(codes.Unavailable, "shutting down")
	x = s.accept()
	if got := x.headers.Get("authorization"); len(got) != 1 || got[0] != "Bearer t00" {
		t.Errorf("the token was not read again: %q", got)
	}
	if st := c.Status(); !strings.Contains(st.LastError, "shutting down") {
		t.Errorf("the failure is not in the status: %+v", st)
	}
}

func TestRefusesPartly(t *testing.T) {
	s := newStub(t)
	o := newObserver()
	c, store := newClient(t, Config{Address: s.Address, Observer: o})
	run(t, c)
	x, _, _ := s.subscribed()
	x.push(response(AuthorizationType, "p1", policy("a", "1")))
	x.push(response(AddressType, "a1", pod("w1", "1"), pod("w2", "1")))

	got := x.push(response(AddressType, "a2", badPod("w1", "2"), pod("w2", "2"), badPod("w3", "2"), pod("w4", "2")))
	want := "w1: workload: an address has 4 or 16 bytes, not 3; w3: workload: an address has 4 or 16 bytes, not 3"
	if d := got.GetErrorDetail(); d.GetMessage() != want || d.GetCode() != 0 {
		t.Errorf("NACK %v, want %q", d, want)
	}
	v := store.View()
	revisions := map[string]string{}
	for _, w := range v.Workloads() {
		revisions[w.UID] = w.CanonicalRevision
	}
	if d := cmp.Diff(map[string]string{"w1": "1", "w2": "2", "w4": "2"}, revisions); d != "" {
		t.Error("the bad stay as they were, the others are taken (-want +got):", d)
	}
	if d := x.push(response(AuthorizationType, "p2", badPolicy("a"), badPolicy("b"))).GetErrorDetail(); !strings.Contains(d.GetMessage(), "ns/b: ") {
		t.Errorf("NACK %v", d)
	}
	if d := x.push(removal(AddressType, "a3", "w4", "never-there", "")).GetErrorDetail(); d != nil {
		t.Errorf("a removal is refused: %v", d)
	}
	if store.View().WorkloadByUID("w4") != nil {
		t.Error("w4 was removed and is there")
	}
	x.push(response("type.googleapis.com/else", "u1")) // acknowledged

	x.end <- nil
	_, address, policy := s.subscribed()
	if d := cmp.Diff(map[string]string{"w1": "1", "w2": "2"}, address.GetInitialResourceVersions()); d != "" {
		t.Error("addresses on reconnect (-want +got):", d)
	}
	if d := cmp.Diff(map[string]string{"ns/a": "1"}, policy.GetInitialResourceVersions()); d != "" {
		t.Error("policies on reconnect (-want +got):", d)
	}
	if d := cmp.Diff([]Reason{Complete}, o.reasons(t, 1)); d != "" {
		t.Error("ends (-want +got):", d)
	}
	if o.bytes[AddressType] == 0 || o.bytes[AuthorizationType] == 0 || len(o.bytes) != 2 {
		t.Errorf("bytes counted: %v", o.bytes)
	}
}

// A first response of which nothing can be used must not keep the proxy from
// starting.
func TestSyncedThoughRefused(t *testing.T) {
	s := newStub(t)
	c, _ := newClient(t, Config{Address: s.Address})
	run(t, c)
	x, _, _ := s.subscribed()
	x.push(response(AuthorizationType, "1", badPolicy("a")))
	x.push(response(AddressType, "2", badPod("w", "1")))
	select {
	case <-c.Synced():
	case <-time.After(patience):
		t.Fatal("not synced")
	}
}

func TestAddresses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "xds.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	forms := map[string]*stub{"unix": serveStub(t, l, "unix://"+path)}
	if l, err = net.Listen("tcp", "[::1]:0"); err == nil {
		forms["IPv6"] = serveStub(t, l, "http://"+l.Addr().String())
	}
	for name, s := range forms {
		t.Run(name, func(t *testing.T) {
			c, _ := newClient(t, Config{Address: s.Address})
			run(t, c)
			x, _, _ := s.subscribed()
			x.push(response(AddressType, "1"))
		})
	}
}

func TestRunTwice(t *testing.T) {
	s := newStub(t)
	c, store := newClient(t, Config{Address: s.Address})
	stop := run(t, c)
	x, _, _ := s.subscribed()
	if err := c.Run(t.Context()); err == nil {
		t.Error("a second Run beside the first")
	}
	x.push(response(AddressType, "1"))
	x.push(response(AuthorizationType, "1"))
	x.push(response(AddressType, "2", pod("w", "7")))
	stop()
	if st := c.Status(); st.State != Idle || store.View().WorkloadByUID("w") == nil {
		t.Errorf("after Run: %+v", st)
	}
	run(t, c)
	if _, address, _ := s.subscribed(); address.GetInitialResourceVersions()["w"] != "7" {
		t.Errorf("a second Run knows nothing of the first: %v", address)
	}
}

// Each of these peers or settings fails an attempt; the client says why and tries
// again.
func TestFailures(t *testing.T) {
	silent := func(t *testing.T) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() }) // never accepted: the kernel does
		return "http://" + l.Addr().String()
	}
	refused := func(t *testing.T) string { return "unix://" + filepath.Join(t.TempDir(), "none.sock") }
	tests := []struct {
		name    string
		address func(*testing.T) string
		edit    func(*Client)
		want    string
	}{
		{"no one there", refused, nil, "no such file"},
		{"says nothing", silent, nil, "connection error"},
		{"token unreadable", refused, func(c *Client) {
			c.cfg.Token = func() (string, error) { return "", errors.New("no token file") }
		}, "no token file"},
		{"token not for a header", refused, func(c *Client) {
			c.cfg.Token = func() (string, error) { return "secret\nsecret", nil }
		}, "a byte at 6"},
		{"token too long", refused, func(c *Client) {
			c.cfg.Token = func() (string, error) { return strings.Repeat("s", maxToken+1), nil }
		}, "the limit is"},
		{"HTTP/1", func(t *testing.T) string { return junk(t, "HTTP/1.1 400 Bad Request\r\n\r\n") }, nil, "connection error"},
		{"no streams allowed", func(t *testing.T) string {
			// SETTINGS with MAX_CONCURRENT_STREAMS 0
			return junk(t, "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00")
		}, func(c *Client) { c.times.open = 200 * time.Millisecond }, errNotOpened.Error()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := newObserver()
			c, _ := newClient(t, Config{Address: tt.address(t), Observer: o})
			c.times.connect, c.times.open = 100*time.Millisecond, patience
			if tt.edit != nil {
				tt.edit(c)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if lasted, err := c.attempt(ctx); err == nil || !strings.Contains(err.Error(), tt.want) || lasted >= 0 {
				t.Fatalf("attempt: %v after %v, want %q", err, lasted, tt.want)
			} else if strings.Contains(err.Error(), "secret") {
				t.Errorf("the token is in %v", err)
			} else if reasonOf(false, err) != ConnectionError {
				t.Errorf("reason %s", reasonOf(false, err))
			}
			stop := run(t, c)
			o.reasons(t, 2)
			stop()
			if st := c.Status(); !strings.Contains(st.LastError, tt.want) || len(st.LastError) > maxLastError+8 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// junk is a peer that says one thing to everyone and then only listens.
func junk(t *testing.T, greeting string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = nc.Close() })
			_, _ = nc.Write([]byte(greeting))
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return "http://" + l.Addr().String()
}

// A control plane that refuses at once does not get to see the client often.
func TestPeerHangsUp(t *testing.T) {
	s := newStub(t)
	o := newObserver()
	c, _ := newClient(t, Config{Address: s.Address, Observer: o})
	run(t, c)
	for i, err := range []error{
		status.Error(codes.Unauthenticated, "authentication failure"), status.Error(codes.Unknown, "?"), nil,
	} {
		x, _, _ := s.subscribed()
		if i > 0 {
			x.push(response(AddressType, "1"))
		}
		x.end <- err
	}
	x := s.accept()
	x.end <- nil
	if d := cmp.Diff([]Reason{ConnectionError, Reconnect, Complete}, o.reasons(t, 3)); d != "" {
		t.Error("(-want +got):", d)
	}
}

func TestProtocolErrors(t *testing.T) {
	s := newStub(t)
	c, _ := newClient(t, Config{Address: s.Address})
	run(t, c)
	x, _, _ := s.subscribed()
	if err := x.Send(response(AddressType, strings.Repeat("n", maxEcho+1))); err != nil {
		t.Fatal(err)
	}
	s.accept() // it hung up and came back
	if st := c.Status(); !strings.Contains(st.LastError, "nonce") {
		t.Errorf("status %+v", st)
	}
}

// A peer that answers pings but does not read requests is left.
func TestPeerDoesNotRead(t *testing.T) {
	s := newStub(t, grpc.StaticStreamWindowSize(64<<10))
	c, _ := newClient(t, Config{Address: s.Address})
	c.times.write = 100 * time.Millisecond
	run(t, c)
	x, _, _ := s.subscribed()
	stop := make(chan struct{})
	go func() { // until the client has left
		defer close(stop)
		for i := 0; x.Send(response(AddressType, strings.Repeat("n", maxEcho), badPod("w", "1"))) == nil; i++ {
		}
	}()
	s.accept()
	<-stop
	if st := c.Status(); !strings.Contains(st.LastError, errNotRead.Error()) {
		t.Errorf("status %+v", st)
	}
}

// A refused policy must not leave what it guards open: something stands in for it
// until a valid version comes, it is removed, or a new stream does not bring it.
func TestRefusedPoliciesCloseWhatTheyGuard(t *testing.T) {
	s := newStub(t)
	c, store := newClient(t, Config{Address: s.Address})
	run(t, c)
	bad := func(name string, scope security.Scope) *discovery.Resource {
		return &discovery.Resource{Name: "ns/" + name, Version: "1", Resource: pack(AuthorizationType, &security.Authorization{
			Name: name, Namespace: "ns", Scope: scope, Action: security.Action_DENY,
			Groups: []*security.Group{{Rules: []*security.Rules{{Matches: []*security.Match{{SourceIps: []*security.Address{{}}}}}}}},
		})}
	}
	denies := func(name string) bool {
		p := store.View().Policy("ns/" + name)
		return p != nil && p.Action == workload.Deny && len(p.Rules) == 1 && len(p.Rules[0].Clauses) == 0
	}
	x, _, _ := s.subscribed()
	x.push(response(AddressType, "a1", pod("w", "1")))
	got := x.push(response(AuthorizationType, "p1", policy("kept", "1"),
		bad("global", security.Scope_GLOBAL), bad("namespace", security.Scope_NAMESPACE), bad("gone", security.Scope_NAMESPACE),
		bad("selector", security.Scope_WORKLOAD_SELECTOR)))
	if got.GetErrorDetail() == nil {
		t.Error("no NACK")
	}
	set := store.View().PoliciesFor(store.View().WorkloadByUID("w"))
	if !denies("global") || !denies("namespace") || len(set.Global) != 1 || len(set.Namespace) != 2 || store.View().Policy("ns/selector") != nil {
		t.Errorf("stand-ins: %+v", set)
	}

	x.push(response(AuthorizationType, "p2", badPolicy("kept")))
	if p := store.View().Policy("ns/kept"); p == nil || denies("kept") {
		t.Error("the earlier version did not stay")
	}
	r := response(AuthorizationType, "p3", badPolicy("kept"))
	r.RemovedResources = []string{"ns/kept", "ns/gone"}
	x.push(r)
	if store.View().Policy("ns/gone") != nil || !denies("kept") {
		t.Error("one was removed; the other came back, but not so that it can be used")
	}
	x.push(response(AuthorizationType, "p4", policy("kept", "2")))
	if denies("kept") {
		t.Error("the valid version did not replace the stand-in")
	}

	x.end <- nil
	x, _, first := s.subscribed()
	if d := cmp.Diff(map[string]string{"ns/kept": "2"}, first.GetInitialResourceVersions()); d != "" {
		t.Error("on reconnect (-want +got):", d)
	}
	if !denies("global") || !denies("namespace") {
		t.Error("open in between")
	}
	x.push(response(AuthorizationType, "p5", bad("global", security.Scope_GLOBAL)))
	if !denies("global") || store.View().Policy("ns/namespace") != nil {
		t.Error("one is still there and refused, the other was deleted meanwhile")
	}
}
