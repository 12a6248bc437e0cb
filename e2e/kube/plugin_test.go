//go:build kube

package kube_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/kube"
	"github.com/warren-mesh/warren/e2e/kube/app"
)

// host is a pod that sees a node's files.
func host(t *testing.T, node string) *kube.Node {
	t.Helper()
	h, err := mesh.Host(testContext(t), namespace(t, nil), node)
	must(t, err)
	return h
}

func awaitChained(t *testing.T, h *kube.Node) {
	t.Helper()
	must(t, kube.Until(testContext(t), time.Minute, "the plugin is chained", func(ctx context.Context) error {
		ok, err := h.Chained(ctx)
		if err == nil && !ok {
			file, text, _ := h.Conflist(ctx)
			err = fmt.Errorf("%s is %s", file, text)
		}
		return err
	}))
}

// without takes our plugin out of a conflist, as a primary CNI's rewrite does.
func without(t *testing.T, conflist string) string {
	t.Helper()
	var list map[string]any
	must(t, json.Unmarshal([]byte(conflist), &list))
	var rest []any
	for _, p := range list["plugins"].([]any) {
		if p.(map[string]any)["type"] != kube.PluginName {
			rest = append(rest, p)
		}
	}
	list["plugins"] = rest
	b, err := json.Marshal(list)
	must(t, err)
	return string(b)
}

// TestPrimaryRewrites: the primary CNI writes its configuration anew, renames it, and
// deletes and makes it; pods that start after the repair are in the mesh.
func TestPrimaryRewrites(t *testing.T) {
	h := host(t, mesh.Nodes[0])
	awaitChained(t, h)
	ns := namespace(t, in)
	ctx := testContext(t)
	file, text, err := h.Primary(ctx)
	must(t, err)
	bare := without(t, text)
	renamed := path.Join(path.Dir(file), "02-renamed.conflist")
	for i, change := range []struct {
		name string
		do   func() error
	}{
		{"rewritten", func() error { return h.Write(ctx, file, bare) }},
		{"renamed", func() error { return h.Rename(ctx, file, renamed) }},
		{"back, bare", func() error {
			if err := h.Write(ctx, file, bare); err != nil {
				return err
			}
			return h.Remove(ctx, renamed)
		}},
		{"deleted and made", func() error {
			if err := h.Remove(ctx, file); err != nil {
				return err
			}
			time.Sleep(2 * time.Second) // the node has no configuration meanwhile
			return h.Write(ctx, file, bare)
		}},
	} {
		must(t, change.do())
		began := time.Now()
		awaitChained(t, h)
		fmt.Printf("measure: the primary CNI's configuration %s: chained again after %s\n", change.name, time.Since(began).Round(10*time.Millisecond))
		p := run(t, kube.PodSpec{Namespace: ns, Name: fmt.Sprintf("after-%d", i), Account: "after", Node: mesh.Nodes[0]})
		awaitCaptured(t, p...)
	}
}

// TestAgentAway: with no agent, as in the middle of an upgrade that fails, pods outside
// the mesh start, pods of the mesh wait with a reason, and those that run go on.
func TestAgentAway(t *testing.T) {
	e := newEnds(t)
	plain := namespace(t, nil)
	ctx := testContext(t)
	mustCall(t, e.a, url("http", e.far, app.HTTPPort))
	mend, err := mesh.WithoutAgent(ctx)
	if mend != nil {
		t.Cleanup(func() { must(t, mend(context.Background())) })
	}
	must(t, err)
	mustCall(t, e.a, url("http", e.far, app.HTTPPort))
	mustCall(t, e.outside, url("http", e.far, app.HTTPPort))
	run(t, kube.PodSpec{Namespace: plain, Name: "plain", Node: mesh.Nodes[0]})
	waits, err := mesh.Create(ctx, kube.PodSpec{Namespace: e.ns, Name: "waits", Account: "a", Node: mesh.Nodes[0]})
	must(t, err)
	must(t, kube.Until(ctx, time.Minute, "the reason", func(ctx context.Context) error {
		return mesh.EventWith(ctx, e.ns, waits.Name, "FailedCreatePodSandBox", kube.PluginName)
	}))
	for _, ev := range mesh.Events(ctx, e.ns, waits.Name) {
		t.Logf("%s: %s", ev.Reason, ev.Message)
	}
	must(t, mend(ctx))
	waits, err = mesh.WaitReady(ctx, e.ns, waits.Name, 2*time.Minute)
	must(t, err)
	began := time.Now().Add(-time.Second)
	awaitCaptured(t, waits, e.a, e.far)
	mustCall(t, waits, url("http", e.far, app.HTTPPort))
	must(t, mesh.WaitMutual(ctx, began, waits, e.far))
}

// TestAgentLeavesNode: a DaemonSet that is for other nodes from now on leaves this one
// clean, and pods start there outside of the mesh.
func TestAgentLeavesNode(t *testing.T) {
	ns := namespace(t, in)
	h := host(t, mesh.Nodes[0])
	ctx := testContext(t)
	p := run(t, kube.PodSpec{Namespace: ns, Name: "a", Node: mesh.Nodes[0]})[0]
	awaitCaptured(t, p)
	must(t, mesh.NodesWith(ctx, kube.AgentDaemonSet, map[string]string{"e2e/no": "node"}))
	t.Cleanup(func() {
		must(t, mesh.NodesWith(context.Background(), kube.AgentDaemonSet, nil))
		must(t, mesh.WaitUp(context.Background(), 3*time.Minute))
	})
	must(t, kube.Until(ctx, 2*time.Minute, "the node is clean", h.Clean))
	run(t, kube.PodSpec{Namespace: ns, Name: "later", Node: mesh.Nodes[0]})
}
