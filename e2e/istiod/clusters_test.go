//go:build istiod

package istiod

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/e2e/onehost"
)

const networkLabel = "topology.istio.io/network"

// clusters are two meshes of one root of trust, each with a control plane, a network and
// pods of its own. The networks do not touch, and the pods of both have the same addresses:
// a gateway, which has a foot in either, is the only way between them.
type clusters struct{ n1, n2 *world }

func newClusters(t *testing.T, name string) *clusters {
	t.Helper()
	ca := newPKI(t)
	c := &clusters{
		n1: &world{name: name, cluster: "c1", network: "n1", pki: ca},
		n2: &world{name: name, cluster: "c2", network: "n2", pki: ca},
	}
	worlds := []*world{c.n1, c.n2}
	t.Cleanup(func() {
		for _, w := range worlds {
			if t.Failed() {
				w.showLogs(t)
			}
			if err := w.close(); err != nil {
				t.Error(err)
			}
		}
	})
	ca.mount(t, filepath.Dir(ca.lists()), map[string][]byte{crlFile: ca.secret(t)[crlFile]})
	errs := make([]error, len(worlds))
	var building sync.WaitGroup
	for i, w := range worlds {
		building.Go(func() { errs[i] = w.build(nil) })
	}
	building.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return c
}

// edge is a network's east-west gateway, of Istio's kind: it ends the outer tunnel, and
// gives what is in it, which is a tunnel again, to an endpoint of the service that it was
// asked for.
type edge struct {
	of, from *world
	*onehost.Gateway
	outside, inside *onehost.Pod // where it is reached from the other network, and where it reaches its own
	self            *mtls.Identity

	mu    sync.Mutex
	leads map[string][]netip.AddrPort // by authority
}

// edge starts the gateway of a network, for those who come from another.
func (c *clusters) edge(t *testing.T, of, from *world) *edge {
	t.Helper()
	e := &edge{of: of, from: from, leads: make(map[string][]netip.AddrPort)}
	e.inside, e.self = of.stranger(t, 1, "edge")
	e.outside = from.pod(t, 1, onehost.PodSpec{Namespace: "plain", Name: "edge-of-" + of.network})
	e.up(t)
	t.Cleanup(func() { e.down(t) })
	return e
}

func (e *edge) up(t *testing.T) {
	t.Helper()
	var err error
	e.Gateway, err = e.outside.ServeGatewayTo(e.self, func(ctx context.Context, authority string) (*net.TCPConn, error) {
		e.mu.Lock()
		list := e.leads[authority]
		e.mu.Unlock()
		if len(list) == 0 {
			return nil, fmt.Errorf("nobody is behind %s", authority)
		}
		return e.inside.Dial(ctx, list[rand.IntN(len(list))])
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (e *edge) down(t *testing.T) {
	t.Helper()
	if e.Gateway == nil {
		return
	}
	if err := e.Gateway.Close(); err != nil {
		t.Error(err)
	}
	e.Gateway = nil
}

// lead says who is behind an authority.
func (e *edge) lead(authority string, pods ...*onehost.Pod) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leads[authority] = nil
	for _, p := range pods {
		e.leads[authority] = append(e.leads[authority], on(p, 15008))
	}
}

// asked is what the gateway was asked last, and forgets it all.
func (e *edge) asked() (last onehost.Asked, n int) {
	for {
		select {
		case last = <-e.Asked:
			n++
		default:
			return last, n
		}
	}
}

// gateway is the Gateway of the edge: istiod reads the one that the other cluster has,
// of class istio-east-west; ours, which knows one cluster, has it declared.
func (e *edge) gateway() (at *world, doc string) {
	at, class := e.of, "istio-east-west"
	if at.name != "istiod" {
		at, class = e.from, "istio-remote"
	}
	return at, strings.NewReplacer("NETWORK", e.of.network, "CLASS", class, "ADDRESS", e.outside.IP4().String()).Replace(`apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge-of-NETWORK, namespace: app, labels: {topology.istio.io/network: NETWORK}, annotations: {gateway.istio.io/service-account: edge}}
spec:
  gatewayClassName: CLASS
  listeners: [{name: mesh, port: 15008, protocol: HBONE, tls: {mode: Terminate, options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}}]
status: {addresses: [{type: IPAddress, value: ADDRESS}]}
`)
}

func (e *edge) name() string { return "edge-of-" + e.of.network }

// join has w know the cluster of another: under istiod by a Secret with the way to its API
// server. What our control plane, which knows one cluster, is told instead are the
// workloads that are there: see remote.
func (w *world) join(t *testing.T, other *world) {
	t.Helper()
	i, ok := w.Opts.ControlPlane.(*istiod)
	if !ok {
		return
	}
	theirs := other.Opts.ControlPlane.(*istiod)
	port := w.forward(t, theirs)
	ca, err := os.ReadFile(theirs.file("certs/apiserver.crt"))
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:%s", certificate-authority-data: %s}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, port, base64.StdEncoding.EncodeToString(ca), adminToken)
	doc := fmt.Sprintf(`apiVersion: v1
kind: Secret
metadata: {name: %s, namespace: %s, labels: {istio/multiCluster: "true"}}
data: {%s: %s}
`, remoteSecret, rootNamespace, other.cluster, base64.StdEncoding.EncodeToString([]byte(config)))
	if err := i.Put([]byte(doc)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.leave(t) })
}

const remoteSecret = "remote-cluster"

// leave has w forget the other cluster.
func (w *world) leave(t *testing.T) {
	t.Helper()
	if i, ok := w.Opts.ControlPlane.(*istiod); ok {
		if err := i.Gone("Secret", rootNamespace, remoteSecret); err != nil {
			t.Fatal(err)
		}
	}
}

// forward has the API server of another network be reached in this one, at a port that it
// returns.
func (w *world) forward(t *testing.T, to *istiod) string {
	t.Helper()
	var l net.Listener
	err := w.FabricNS().Do(func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { carry(ctx, in, to) })
		}
	})
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}

func carry(ctx context.Context, in net.Conn, to *istiod) {
	defer in.Close()
	out, err := to.mesh.DialFabric(ctx, "127.0.0.1:"+apiPort)
	if err != nil {
		return
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { _ = in.Close(); _ = out.Close() })
	defer stop()
	done := make(chan struct{})
	go func() { defer close(done); _, _ = io.Copy(out, in); _ = out.Close() }()
	_, _ = io.Copy(in, out)
	_ = in.Close()
	<-done
}

// remote is what w is told of pods of another network that are behind a service of its
// own. Istiod reads it in the other cluster.
func (w *world) remote(t *testing.T, other *world, service string, accounts ...string) {
	t.Helper()
	if w.name == "istiod" {
		return
	}
	for n, account := range accounts {
		name := fmt.Sprintf("%s-%s-%d", service, other.network, n)
		w.put(t, "WorkloadEntry", "app", name, fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: %s, namespace: app, labels: {app: %s}}
spec: {network: %s, serviceAccount: %s, labels: {app: %[2]s}}
`, name, service, other.network, account))
	}
}

// global is a Service that every cluster may use.
func global(name, vip, more string) string {
	return strings.NewReplacer("NAME", name, "VIP", vip, "MORE", more).Replace(`apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: app, labels: {istio.io/global: "true"}}
spec: {clusterIP: VIP, clusterIPs: [VIP], selector: {app: NAME}, ports: [{name: http, port: 80, targetPort: 18080}], MORE}
`)
}
