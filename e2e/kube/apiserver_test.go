//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/kube"
	"github.com/warren-mesh/warren/e2e/kube/app"
)

// TestAPIServerTrouble: an API server that is gone, busy or slow for the agents harms
// no pod that is in the mesh; pods that start outside of it start, those of the mesh
// start as well or wait with a reason, and in the end are in.
func TestAPIServerTrouble(t *testing.T) {
	ctx := testContext(t)
	fronts, err := mesh.Fronts(ctx, namespace(t, nil))
	t.Cleanup(func() { must(t, mesh.Install(context.Background())) })
	must(t, err)
	e := newEnds(t)
	awaitCaptured(t, e.a, e.near, e.far)
	node := mesh.Nodes[0]
	for _, mode := range []string{app.FrontSlow, app.FrontBusy, app.FrontGone} {
		t.Run(mode, func(t *testing.T) {
			ctx, plain := testContext(t), namespace(t, nil)
			all := flows(e)
			for _, f := range all {
				must(t, mesh.StartLoad(ctx, e.ns, f.pod, f.load))
			}
			awaitProgress(t, e.ns, all)
			must(t, fronts.Set(ctx, node, mode))
			t.Cleanup(func() { must(t, fronts.Set(context.Background(), node, app.FrontOpen)) })
			began := time.Now()
			run(t, kube.PodSpec{Namespace: plain, Name: "plain", Node: node})
			fmt.Printf("measure: the API server is %s for the agent: a pod outside the mesh was ready after %s\n", mode, time.Since(began).Round(10*time.Millisecond))
			began = time.Now()
			late, err := mesh.Create(ctx, kube.PodSpec{Namespace: e.ns, Name: "late-" + mode, Account: "a", Node: node})
			must(t, err)
			if mode == app.FrontSlow {
				late, err = mesh.WaitReady(ctx, e.ns, late.Name, 2*time.Minute)
			} else {
				err = kube.Until(ctx, 2*time.Minute, "the pod waits with a reason", func(ctx context.Context) error {
					return mesh.EventWith(ctx, e.ns, late.Name, "FailedCreatePodSandBox", kube.PluginName)
				})
			}
			must(t, err)
			awaitProgress(t, e.ns, all)
			must(t, fronts.Set(ctx, node, app.FrontOpen))
			late, err = mesh.WaitReady(ctx, e.ns, late.Name, 3*time.Minute)
			must(t, err)
			awaitCaptured(t, late)
			fmt.Printf("measure: the API server is %s for the agent: a pod of the mesh was in it after %s\n", mode, time.Since(began).Round(10*time.Millisecond))
			awaitProgress(t, e.ns, all)
			unharmed(t, e.ns, all, "the API server is "+mode+" for the agent")
		})
	}
	must(t, fronts.Stop(ctx))
}

// apiDown is how long the API server is away. Nothing can be asked meanwhile.
const apiDown = 15 * time.Second

// TestAPIServerGone: it is away for everybody, and traffic goes on.
func TestAPIServerGone(t *testing.T) {
	apiserver := command(t, "E2E_APISERVER", "stops and starts the cluster's API server")
	e := newEnds(t)
	awaitCaptured(t, e.a, e.near, e.far)
	all := flows(e)
	ctx := testContext(t)
	for _, f := range all {
		must(t, mesh.StartLoad(ctx, e.ns, f.pod, f.load))
	}
	awaitProgress(t, e.ns, all)
	must(t, apiserver(ctx, "stop"))
	t.Cleanup(func() { _ = apiserver(context.Background(), "start") }) // in case that it did not come to that
	time.Sleep(apiDown)
	must(t, apiserver(ctx, "start"))
	awaitAPI(t)
	awaitProgress(t, e.ns, all)
	unharmed(t, e.ns, all, "no API server for "+apiDown.String())
	later := run(t, kube.PodSpec{Namespace: e.ns, Name: "later", Node: mesh.Nodes[0]})
	awaitCaptured(t, later...)
}

// awaitAPI waits until the API server answers and the nodes are ready.
func awaitAPI(t *testing.T) {
	t.Helper()
	ctx := testContext(t)
	for _, node := range mesh.Nodes {
		must(t, kube.Until(ctx, 3*time.Minute, "the API server answers", func(ctx context.Context) error {
			_, err := mesh.NodeStatus(ctx, node)
			return err
		}))
	}
}

// TestReboot: a node dies with all that ran there and begins anew while there is no
// API server. When that is back, its pods are in the mesh again, and the primary CNI's
// configuration holds our plugin all the time.
func TestReboot(t *testing.T) {
	reboot := command(t, "E2E_REBOOT", "makes the node that it is called with lose its pods and /run, and begin anew")
	apiserver := command(t, "E2E_APISERVER", "stops and starts the cluster's API server")
	e := newEnds(t)
	awaitCaptured(t, e.a, e.near, e.far)
	ctx := testContext(t)
	node := mesh.Nodes[1]
	must(t, mesh.StartLoad(ctx, e.ns, "a", app.Load{Name: "near", URL: url("http", e.near, app.HTTPPort), Workers: 2, Interval: "50ms", Timeout: "10s"}))
	must(t, apiserver(ctx, "stop"))
	t.Cleanup(func() { _ = apiserver(context.Background(), "start") }) // in case that it did not come to that
	began := time.Now()
	must(t, reboot(ctx, node))
	must(t, apiserver(ctx, "start"))
	must(t, mesh.NodeHeard(ctx, node, began, 3*time.Minute))
	must(t, mesh.WaitUp(ctx, 5*time.Minute))
	fmt.Printf("measure: %s rebooted: the mesh was up again after %s\n", node, time.Since(began).Round(time.Second))
	awaitRestarted(t, e, began)
	far, err := mesh.WaitReady(ctx, e.ns, "far", 3*time.Minute)
	must(t, err)
	awaitCaptured(t, e.a, e.near, far)
	// The control plane may have been there: a proxy takes 40 s to find a peer dead.
	must(t, mesh.Mutual(ctx, 3*time.Minute, e.a, far, url("http", far, app.HTTPPort)))
	awaitChained(t, host(t, node))
	s, err := mesh.StopLoad(ctx, e.ns, "a", "near") // on the other node
	must(t, err)
	if s.Failed > 0 {
		t.Errorf("on the node that stayed: %+v", s)
	}
}

// awaitRestarted waits until kubelet says that the pod on the node that died has a new
// container: until then what it says is of before.
func awaitRestarted(t *testing.T, e ends, since time.Time) {
	t.Helper()
	ctx := testContext(t)
	must(t, kube.Until(ctx, 5*time.Minute, "far runs anew", func(ctx context.Context) error {
		now, err := mesh.WaitReady(ctx, e.ns, "far", time.Minute)
		if err != nil {
			return err
		}
		run := now.Status.ContainerStatuses[0].State.Running
		if run == nil || run.StartedAt.Time.Before(since.Truncate(time.Second)) {
			return fmt.Errorf("%+v", now.Status.ContainerStatuses[0].State)
		}
		return nil
	}))
}
