package event

import (
	"context"
	"log/slog"
	"sync"

	"github.com/warren-mesh/warren/internal/netns"
)

// Fake is an agent for tests of what speaks to one. Its answers are functions;
// where one is nil, pods are left alone and everything succeeds. It records
// what it was asked and closes the namespaces that it is given.
type Fake struct {
	OnAdd        func(ctx context.Context, add Add, ns *netns.NS) (Answer, error)
	OnProgrammed func(ctx context.Context, how string) error
	OnDel        func(key Key, podUID string) error
	OnCheck      func(key Key) (Answer, error)
	OnGC         func(network string, valid []Key) error
	OnStatus     func() error

	mu    sync.Mutex
	calls []FakeCall
}

// FakeCall is one thing that a Fake was asked. The fields that are set are
// those of the verb.
type FakeCall struct {
	Verb    string // Add, Programmed, Abort, Del, Check, GC, Status
	Add     Add
	NS      netns.ID // Add
	How     string   // Programmed
	Reason  error    // Abort
	Key     Key      // Del, Check
	PodUID  string   // Del
	Network string   // GC
	Valid   []Key    // GC
}

// Run listens at path and serves until ctx ends. ready, if not nil, is closed
// when the socket is there.
func (f *Fake) Run(ctx context.Context, path string, ready chan<- struct{}) error {
	l, err := Listen(path)
	if err != nil {
		return err
	}
	if ready != nil {
		close(ready)
	}
	return Serve(ctx, l, f, slog.New(slog.DiscardHandler))
}

// Calls returns what the Fake was asked so far.
func (f *Fake) Calls() []FakeCall {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]FakeCall(nil), f.calls...)
}

func (f *Fake) record(c FakeCall) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, c)
}

// Decide is Handler's.
func (f *Fake) Decide(ctx context.Context, add Add, ns *netns.NS) (Session, Answer, error) {
	defer ns.Close()
	f.record(FakeCall{Verb: "Add", Add: add, NS: ns.ID()})
	answer := Answer{Action: Leave}
	var err error
	if f.OnAdd != nil {
		answer, err = f.OnAdd(ctx, add, ns)
	}
	if err != nil || answer.Action != RedirectSo {
		return nil, answer, err
	}
	return fakeSession{f}, answer, nil
}

// Del is Handler's.
func (f *Fake) Del(_ context.Context, key Key, podUID string) error {
	f.record(FakeCall{Verb: "Del", Key: key, PodUID: podUID})
	if f.OnDel == nil {
		return nil
	}
	return f.OnDel(key, podUID)
}

// Check is Handler's.
func (f *Fake) Check(_ context.Context, key Key) (Answer, error) {
	f.record(FakeCall{Verb: "Check", Key: key})
	if f.OnCheck == nil {
		return Answer{Action: Leave}, nil
	}
	return f.OnCheck(key)
}

// GC is Handler's.
func (f *Fake) GC(_ context.Context, network string, valid []Key) error {
	f.record(FakeCall{Verb: "GC", Network: network, Valid: valid})
	if f.OnGC == nil {
		return nil
	}
	return f.OnGC(network, valid)
}

// Status is Handler's.
func (f *Fake) Status(context.Context) error {
	f.record(FakeCall{Verb: "Status"})
	if f.OnStatus == nil {
		return nil
	}
	return f.OnStatus()
}

type fakeSession struct{ f *Fake }

func (s fakeSession) Programmed(ctx context.Context, how string) error {
	s.f.record(FakeCall{Verb: "Programmed", How: how})
	if s.f.OnProgrammed == nil {
		return nil
	}
	return s.f.OnProgrammed(ctx, how)
}

func (s fakeSession) Abort(reason error) { s.f.record(FakeCall{Verb: "Abort", Reason: reason}) }
