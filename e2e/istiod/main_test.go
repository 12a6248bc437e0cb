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
}

// The ports that servers listen on. 18084 is on loopback alone.
var ports = []int{18080, 19090}

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
				if err := w.build(nil); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() {
				if t.Failed() {
					w.showLogs(t)
				}
			})
			scenario(t, w)
		})
	}
}

func (w *world) showLogs(t *testing.T) {
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
	if w.name == "istiod" {
		o.ControlPlane = &istiod{}
		o.Env = append(slices.Clone(env), "ALT_XDS_HOSTNAME=istiod.istio-system.svc", "ALT_CA_HOSTNAME=istiod.istio-system.svc", "SERVICE_ACCOUNT=ztunnel")
	}
	var err error
	if o.Dir, err = os.MkdirTemp("", o.Prefix+"-"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	if w.Mesh, err = onehost.New(ctx, o); err != nil {
		return err
	}
	if err := errors.Join(w.PutNamespace("app", map[string]string{"istio.io/dataplane-mode": "ambient"}), w.PutNamespace("plain", nil),
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
			s, err := (*p.to).Serve(port, answer(p.namespace+"/"+p.name))
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

// answer says who is spoken to and whom it sees, then sends back what it reads: a
// server that speaks first.
func answer(name string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
		onehost.Echo(c)
	}
}

// serveElsewhere is a host that no control plane knows: a node's own address.
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
	return netip.AddrPortFrom(w.Nodes[1].Addrs()[0].Addr(), 7777)
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

// put has an object in place until the test ends.
func (w *world) put(t *testing.T, kind, namespace, name, doc string) {
	t.Helper()
	if err := w.Put(kind, namespace, name, []byte(doc)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Remove(kind, namespace, name); err != nil {
			t.Error(err)
		}
	})
	if kind == "Service" && !w.onDemand {
		knows(t, w, namespace, name) // else a call goes where nobody answers, and takes long
	}
}

// reply is what a server said.
type reply struct {
	who  string // namespace/name
	sees netip.Addr
}

// call makes one connection as an application does.
func call(from *onehost.Pod, to netip.AddrPort) (reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, to)
	if err != nil {
		return reply{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "ping"); err != nil {
		return reply{}, err
	}
	if err := c.CloseWrite(); err != nil {
		return reply{}, err
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return reply{}, err
	}
	var who, seen string
	if _, err := fmt.Sscanf(string(b), "%s %s\nping", &who, &seen); err != nil {
		return reply{}, fmt.Errorf("answer %q: %w", b, err)
	}
	ap, err := netip.ParseAddrPort(seen)
	return reply{who, ap.Addr().Unmap()}, err
}

func at(ip string, port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(port))
}

func on(p *onehost.Pod, port int) netip.AddrPort { return netip.AddrPortFrom(p.IP4(), uint16(port)) }

// eventually waits for what a change brings about.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(45 * time.Second)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond) // a poll's interval, not a wait for a result
	}
}

// reaches and refused say how a call must end, sooner or later.
func reaches(t *testing.T, from *onehost.Pod, to netip.AddrPort, who ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s reaches %s at %s", from.Spec.Name, who, to), func() error {
		r, err := call(from, to)
		if err == nil && len(who) > 0 && !slices.Contains(who, r.who) {
			err = fmt.Errorf("%s answered", r.who)
		}
		return err
	})
}

func refused(t *testing.T, from *onehost.Pod, to netip.AddrPort) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s is refused at %s", from.Spec.Name, to), func() error {
		if r, err := call(from, to); err == nil {
			return fmt.Errorf("%s answered", r.who)
		}
		return nil
	})
}

// spread calls until each of who has answered; nobody else may.
func spread(t *testing.T, from *onehost.Pod, to netip.AddrPort, who ...string) {
	t.Helper()
	seen := map[string]bool{}
	eventually(t, fmt.Sprintf("%s reaches all of %v at %s", from.Spec.Name, who, to), func() error {
		r, err := call(from, to)
		if err != nil {
			return err
		}
		if !slices.Contains(who, r.who) {
			clear(seen)
			return fmt.Errorf("%s answered", r.who)
		}
		if seen[r.who] = true; len(seen) < len(who) {
			return fmt.Errorf("only %v so far", seen)
		}
		return nil
	})
}
