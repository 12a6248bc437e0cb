package zds

import (
	"context"
	"testing"

	"github.com/warren-mesh/warren/internal/nstest"
)

// TestProxyCatchesUpWithWhatCameDuringItsSnapshot: a pod that an older proxy was
// told of meanwhile is not missing from the newer one.
func TestProxyCatchesUpWithWhatCameDuringItsSnapshot(t *testing.T) {
	nstest.Require(t)
	nstest.LeakCheck(t)
	a := newAgent(t)
	one, two := pod(t, "one"), pod(t, "two")
	a.set(one)
	older, _ := proxy(t, a)
	newer := NewFakeProxy(a.path)
	in, free := make(chan struct{}), make(chan struct{})
	newer.OnAdd(func(context.Context, string, Info) error {
		newer.OnAdd(nil)
		close(in)
		<-free
		return nil
	})
	start(t, newer.Run)
	<-in
	a.set(one, two)
	if err := a.Add(within(t), two); err != nil {
		t.Fatal(err)
	}
	if got := uids(older); got != "one two" {
		t.Errorf("the older serves %q", got)
	}
	close(free)
	if err := newer.Wait(within(t), func() bool { return uids(newer) == "one two" }); err != nil {
		t.Errorf("the newer serves %q", uids(newer))
	}
}
