package event

import (
	"context"
	"log/slog"
	"sync"

	"github.com/warren-mesh/warren/internal/netns"
)

// Fake is an agent for tests of what speaks to one. Its answers are functions;
// where one is nil, pods are left alone and everything succeeds. While it runs
// they are changed by Change only. It records what it was asked and closes the
// namespaces that it is given.
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

// Change lets fn change the answers; fn is not called while one is looked up.
func (f *Fake) Change(fn func(*Fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn(f)
}

// Calls returns what the Fake was asked so far.
func (f *Fake) Calls() []FakeCall {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]FakeCall(nil), f.calls...)
}

// record returns the answers as they are at the time of the call.
func (f *Fake) record(c FakeCall) fakeAnswers {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, c)
	return fakeAnswers{f.OnAdd, f.OnProgrammed, f.OnDel, f.OnCheck, f.OnGC, f.OnStatus}
}

type fakeAnswers struct {
	add        func(ctx context.Context, add Add, ns *netns.NS) (Answer, error)
	programmed func(ctx context.Context, how string) error
	del        func(key Key, podUID string) error
	check      func(key Key) (Answer, error)
	gc         func(network string, valid []Key) error
	status     func() error
}

// Decide is Handler's.
func (f *Fake) Decide(ctx context.Context, add Add, ns *netns.NS) (Session, Answer, error) {
	defer ns.Close()
	on := f.record(FakeCall{Verb: "Add", Add: add, NS: ns.ID()}).add
	if on == nil {
		return nil, Answer{Action: Leave}, nil
	}
	answer, err := on(ctx, add, ns)
	if err != nil || answer.Action != RedirectSo {
		return nil, answer, err
	}
	return fakeSession{f}, answer, nil
}

// Del is Handler's.
func (f *Fake) Del(_ context.Context, key Key, podUID string) error {
	if on := f.record(FakeCall{Verb: "Del", Key: key, PodUID: podUID}).del; on != nil {
		return on(key, podUID)
	}
	return nil
}

// Check is Handler's.
func (f *Fake) Check(_ context.Context, key Key) (Answer, error) {
	if on := f.record(FakeCall{Verb: "Check", Key: key}).check; on != nil {
		return on(key)
	}
	return Answer{Action: Leave}, nil
}

// GC is Handler's.
func (f *Fake) GC(_ context.Context, network string, valid []Key) error {
	if on := f.record(FakeCall{Verb: "GC", Network: network, Valid: valid}).gc; on != nil {
		return on(network, valid)
	}
	return nil
}

// Status is Handler's.
func (f *Fake) Status(context.Context) error {
	if on := f.record(FakeCall{Verb: "Status"}).status; on != nil {
		return on()
	}
	return nil
}

type fakeSession struct{ f *Fake }

func (s fakeSession) Programmed(ctx context.Context, how string) error {
	if on := s.f.record(FakeCall{Verb: "Programmed", How: how}).programmed; on != nil {
		return on(ctx, how)
	}
	return nil
}

func (s fakeSession) Abort(reason error) { s.f.record(FakeCall{Verb: "Abort", Reason: reason}) }
