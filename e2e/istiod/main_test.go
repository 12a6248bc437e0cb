//go:build istiod

package istiod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "istiod:", err)
		code = 1
	}
	os.Exit(code)
}

// bins is the folder with Warren's programs.
var bins string

func run(m *testing.M) (code int, err error) {
	for _, variable := range []string{istiodBin, apiServerBin, etcdBin} {
		if _, missing := program(variable); missing != nil {
			err = errors.Join(err, missing)
		}
	}
	if err != nil {
		return 1, err
	}
	var done func()
	if bins, done, err = onehost.Programs(); err != nil || bins == "" {
		return 1, errors.Join(err, errors.New("these tests need root"))
	}
	defer done()
	defer func() {
		for _, w := range worlds {
			err = errors.Join(err, w.close())
		}
	}()
	return m.Run(), nil
}

// world is a mesh of two nodes under one of the two control planes, with the same pods
// in both.
type world struct {
	*onehost.Mesh
	name                   string
	client, other          *onehost.Pod // in the mesh, on node 1
	server, second         *onehost.Pod // in the mesh, behind service web, on nodes 2 and 1
	outside, outsideServer *onehost.Pod // not in the mesh, on nodes 1 and 2
	apps                   []io.Closer
	elsewhere              net.Listener // a host of no cluster
	onDemand               bool         // proxies know what they were asked for
	peers                  int          // PeerAuthentications that are in place
	dryRun                 bool         // policies in dry run are told to proxies
	cluster, network       string       // of several; empty: there is one
	pki                    *pki         // what is plugged in; nil: the control plane's own CA
	broken                 error        // why it could not be built
}

// The ports that servers listen on. 18084 is on loopback alone.
var ports = []int{18080, 19090}

// privateNamespace is one whose ServiceEntries nobody else may see.
const privateNamespace = "private"

const (
	webVIP   = "10.96.10.10"
	localVIP = "10.96.10.11"
)

var worlds = map[string]*world{}

var built atomic.Int32 // worlds so far

// both runs a scenario under Warren's own control plane and under istiod.
func both(t *testing.T, scenario func(t *testing.T, w *world)) {
	for _, name := range []string{"warren", "istiod"} {
		t.Run(name, func(t *testing.T) {
			w := worlds[name]
			if w == nil {
				w = &world{name: name}
				worlds[name] = w
				w.broken = w.build(nil)
			}
			t.Cleanup(func() {
				if t.Failed() {
					w.showLogs(t)
				}
			})
			if w.broken != nil { // for each test that needs it, and what there is of it is closed at the end
				t.Fatalf("no mesh under %s: %v", name, w.broken)
			}
			scenario(t, w)
		})
	}
}

// alone builds a world for one test.
func alone(t *testing.T, w *world, env []string) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			w.showLogs(t)
		}
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	if err := w.build(env); err != nil {
		t.Fatal(err)
	}
}

func (w *world) showLogs(t *testing.T) {
	if w.Mesh == nil {
		return
	}
	files, _ := filepath.Glob(filepath.Join(w.Opts.Dir, "*.log"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		t.Logf("--- %s\n%s", filepath.Base(f), strings.Join(lines[max(0, len(lines)-12):], "\n"))
	}
}

func (w *world) build(env []string) error {
	w.onDemand = slices.Contains(env, "XDS_ON_DEMAND=true")
	o := onehost.Options{Prefix: fmt.Sprintf("wi%d-%d", os.Getpid()%100000, built.Add(1)), Bins: bins, Env: env, NoWire: true}
	o.Env = append(slices.Clone(env), "SERVICE_ACCOUNT=ztunnel")
	if !w.onDemand {
		o.Env = append(o.Env, "ISTIO_META_DNS_CAPTURE=true") // for pods that ask for it
	}
	if w.name == "warren" {
		o.Args = []string{"--allocate-addresses"}
	}
	if w.name == "istiod" {
		// Gateways' status is the scenarios' to say.
		o.ControlPlane = &istiod{cluster: w.cluster, network: w.network, env: []string{"PILOT_ENABLE_GATEWAY_API_STATUS=false", "PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER=false",
			"PILOT_ENABLE_GATEWAY_API_GATEWAYCLASS_CONTROLLER=false"}}
		o.Env = append(o.Env, "ALT_XDS_HOSTNAME=istiod.istio-system.svc", "ALT_CA_HOSTNAME=istiod.istio-system.svc")
	}
	if w.network != "" {
		o.Cluster = w.cluster
		o.Env = append(o.Env, "NETWORK="+w.network, "ISTIO_META_CLUSTER_ID="+w.cluster)
	}
	w.sendDryRun(&o)
	w.plugIn(&o)
	var err error
	if o.Dir, err = os.MkdirTemp("", o.Prefix+"-"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	if w.Mesh, err = onehost.New(ctx, o); err != nil {
		return err
	}
	if w.network != "" {
		if err := w.PutNamespace(rootNamespace, map[string]string{networkLabel: w.network}); err != nil {
			return err
		}
	}
	if err := errors.Join(w.PutNamespace("app", map[string]string{"istio.io/dataplane-mode": "ambient"}), w.PutNamespace("plain", nil),
		w.PutNamespace(privateNamespace, map[string]string{"istio.io/dataplane-mode": "ambient", "visibility": "private"}),
		w.PutNamespace("far", map[string]string{"istio.io/dataplane-mode": "ambient"})); err != nil {
		return err
	}
	for _, p := range []struct {
		to              **onehost.Pod
		node            int
		namespace, name string
		labels          map[string]string
	}{
		{&w.client, 0, "app", "client", map[string]string{"app": "client"}},
		{&w.other, 0, "app", "other", map[string]string{"app": "other"}},
		{&w.server, 1, "app", "server", map[string]string{"app": "web", "version": "v1"}},
		{&w.second, 0, "app", "second", map[string]string{"app": "web", "version": "v2"}},
		{&w.outside, 0, "plain", "outside", map[string]string{"app": "outside"}},
		{&w.outsideServer, 1, "plain", "server", map[string]string{"app": "outside-server"}},
	} {
		if *p.to, err = w.Nodes[p.node].AddPod(ctx, onehost.PodSpec{Namespace: p.namespace, Name: p.name, ServiceAccount: p.name, Labels: p.labels}); err != nil {
			return err
		}
		for _, port := range ports {
			s, err := (*p.to).Serve(port, answer(w.called(p.namespace, p.name)))
			if err != nil {
				return err
			}
			w.apps = append(w.apps, s)
		}
	}
	if err := w.serveElsewhere(); err != nil {
		return err
	}
	err = w.Put("Service", "app", "web", []byte(`apiVersion: v1
kind: Service
metadata: {name: web, namespace: app}
spec:
  clusterIP: `+webVIP+`
  clusterIPs: [`+webVIP+`]
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 18080}
  - {name: tcp, port: 9090, targetPort: 19090}
  - {name: nothing, port: 84, targetPort: 18084}
`))
	if w.onDemand {
		return err // what the proxies know then is what they were asked for
	}
	return errors.Join(err, w.WaitPods(ctx))
}

// sendDryRun has the control plane tell of policies in dry run, if it is to.
func (w *world) sendDryRun(o *onehost.Options) {
	i, ok := o.ControlPlane.(*istiod)
	switch {
	case !w.dryRun:
	case ok:
		i.env = append(i.env, "AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY=true")
	default:
		o.Args = append(o.Args, "--dry-run-policies")
	}
}

// called is what a pod's application calls itself: with its network, where there are several.
func (w *world) called(namespace, name string) string {
	if w.network != "" {
		return w.network + ":" + namespace + "/" + name
	}
	return namespace + "/" + name
}

// answer says who is spoken to and whom it sees, then sends back what it reads: a
// server that speaks first.
func answer(name string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
		onehost.Echo(c)
	}
}

// serveElsewhere is a host that no control plane knows: a node's own address, in IPv6, since
// at the other one istiod has the proxy's own pod from TestZtunnelSecureMetrics on.
func (w *world) serveElsewhere() error {
	err := w.Nodes[1].NS.Do(func() (err error) {
		w.elsewhere, err = net.Listen("tcp", w.elsewhereAddr().String())
		return err
	})
	if err != nil {
		return err
	}
	w.apps = append(w.apps, w.elsewhere)
	go func() {
		for {
			c, err := w.elsewhere.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				answer("elsewhere")(c.(*net.TCPConn))
			}()
		}
	}()
	return nil
}

func (w *world) elsewhereAddr() netip.AddrPort {
	return netip.AddrPortFrom(w.Nodes[1].Addrs()[1].Addr(), 7777)
}

func (w *world) close() error {
	for _, a := range w.apps {
		_ = a.Close()
	}
	if w.Mesh == nil {
		return nil
	}
	err := w.Mesh.Close()
	left, lerr := onehost.Leftovers(w.Opts.Prefix)
	if len(left) > 0 {
		lerr = errors.Join(lerr, fmt.Errorf("left behind: %v", left))
	}
	return errors.Join(err, lerr, os.RemoveAll(w.Opts.Dir))
}

// put has an object in place until the test ends. What proxies are told of by the
// object's own name they know when it returns, and have forgotten when the test has ended.
func (w *world) put(t *testing.T, kind, namespace, name, doc string) {
	t.Helper()
	if err := w.Put(kind, namespace, name, []byte(doc)); err != nil {
		t.Fatal(err)
	}
	if kind == "PeerAuthentication" {
		w.peers++
	}
	t.Cleanup(func() {
		if err := w.Remove(kind, namespace, name); err != nil {
			t.Error(err)
		}
		w.settled(t, kind, namespace, name, false)
	})
	w.settled(t, kind, namespace, name, true)
}

// settled waits until every proxy knows, or has forgotten, what an object is to it.
func (w *world) settled(t *testing.T, kind, namespace, name string, there bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var err error
	switch {
	case kind == "AuthorizationPolicy" && there:
		err = w.WaitPolicy(ctx, namespace+"/"+name)
	case kind == "AuthorizationPolicy":
		err = w.WaitNoPolicy(ctx, namespace+"/"+name)
	case kind == "PeerAuthentication" && !there:
		if w.peers--; w.peers == 0 {
			err = w.WaitDumps(ctx, "no workload is strict", noneStrict)
		}
	case (kind == "Service" || kind == "ServiceEntry") && !w.onDemand:
		err = w.WaitService(ctx, namespace, name, there)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// end deletes a pod, and waits until no proxy thinks that it is there.
func (w *world) end(t *testing.T, p *onehost.Pod) {
	t.Helper()
	if err := p.Delete(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := w.WaitDumps(ctx, p.Spec.Name+" is forgotten", func(d *onehost.Dump) error {
		for _, wl := range d.Workloads {
			if wl.Namespace == p.Spec.Namespace && wl.Name == p.Spec.Name {
				return fmt.Errorf("%s is still there", wl.UID)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func noneStrict(d *onehost.Dump) error {
	for _, wl := range d.Workloads {
		for _, p := range wl.AuthorizationPolicies {
			if strings.Contains(p, "converted") {
				return fmt.Errorf("%s has %s", wl.UID, p)
			}
		}
	}
	return nil
}
