//go:build istiod

package istiod

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/e2e/onehost"
)

// load makes connections until it is stopped, and says which failed and when.
type load struct {
	cancel  context.CancelFunc
	callers int
	wg      sync.WaitGroup
	mu      sync.Mutex
	calls   int
	failed  []failure
}

// failure is a call that failed, from its beginning to its end.
type failure struct {
	span
	err error
}

type span struct{ from, to time.Time }

func (s span) meets(other span) bool { return s.from.Before(other.to) && other.from.Before(s.to) }

func underLoad(to netip.AddrPort, from ...*onehost.Pod) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, callers: len(from)}
	for _, p := range from {
		l.wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond) // the load's pace
			defer tick.Stop()
			for ctx.Err() == nil {
				began := time.Now()
				_, err := call(p, to)
				l.mu.Lock()
				l.calls++
				if err != nil {
					l.failed = append(l.failed, failure{span{began, time.Now()}, fmt.Errorf("%s: %w", p.Spec.Name, err)})
				}
				l.mu.Unlock()
				<-tick.C
			}
		})
	}
	return l
}

// goesOn returns when so many more calls have been made, begun and ended.
func (l *load) goesOn(t *testing.T, calls int) {
	t.Helper()
	done := func() int { l.mu.Lock(); defer l.mu.Unlock(); return l.calls }
	want := done() + calls + l.callers // whose calls may have begun before
	eventually(t, "the load goes on", func() error {
		if n := done(); n < want {
			return fmt.Errorf("%d calls, want %d", n, want)
		}
		return nil
	})
}

func (l *load) stop() (calls int, failed []failure) {
	l.cancel()
	l.wg.Wait()
	return l.calls, l.failed
}

// TestServiceRestart: the pods of a service are replaced one after another under load.
// Nothing fails, though each old one refuses before anybody has heard that it goes.
func TestServiceRestart(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		vip := at("10.96.10.41", 80)
		labels := map[string]string{"app": "restarted"}
		var old []*onehost.Pod
		for i := range 2 {
			old = append(old, w.pod(t, i, onehost.PodSpec{Namespace: "app", Name: fmt.Sprintf("old-%d", i), Labels: labels}))
		}
		w.put(t, "Service", "app", "restarted", strings.Replace(judged("restarted", vip.Addr().String(), "", ""), "app: web", "app: restarted", 1))
		spread(t, w.client, vip, "app/old-0", "app/old-1")
		l := underLoad(vip, w.client, w.other)
		for i, p := range old {
			w.pod(t, i, onehost.PodSpec{Namespace: "app", Name: fmt.Sprintf("new-%d", i), Labels: labels})
			if err := p.Refuse(18080); err != nil {
				t.Error(err)
			}
			if err := p.SetReady(false); err != nil {
				t.Error(err)
			}
			w.end(t, p)
		}
		spread(t, w.client, vip, "app/new-0", "app/new-1")
		if n, failed := l.stop(); n == 0 || len(failed) > 0 {
			t.Errorf("%d of %d connections failed: %v", len(failed), n, failed)
		}
	})
}

// TestZtunnelRestart: each proxy ends in good order and is started anew under load. What
// fails fails while there is none; from the moment on that the new one is ready, and until
// the next one goes, nothing does. Istio's own replaces by surge, where there always is
// one: e2e/kube has that.
func TestZtunnelRestart(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		const calls = 100 // with both proxies there, before and after each restart
		reaches(t, w.client, on(w.server, 18080), "app/server")
		l := underLoad(on(w.server, 18080), w.client, w.other)
		l.goesOn(t, calls)
		var away []span
		for _, n := range w.Nodes {
			begin := time.Now()
			if err := n.StopProxy(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			err := errors.Join(n.StartProxy(ctx), n.WaitProxyReady(ctx))
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			away = append(away, span{begin, time.Now()})
			l.goesOn(t, calls)
		}
		n, failed := l.stop()
		for _, f := range failed {
			if !slices.ContainsFunc(away, f.meets) {
				t.Errorf("at %s, when both proxies were there: %v", f.from.Format(time.StampMilli), f.err)
			}
		}
		t.Logf("%d of %d connections failed while there was no proxy", len(failed), n)
	})
}

// TestPortKinds: what a Service calls its ports changes nothing at layer 4, whoever
// speaks first, and whatever address the application listens on, loopback excepted.
func TestPortKinds(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		p := w.pod(t, 1, onehost.PodSpec{Namespace: "app", Name: "kinds", Labels: map[string]string{"app": "kinds"}})
		silent, err := p.Serve(19091, func(c *net.TCPConn) { // the client speaks first
			b := make([]byte, 4)
			if _, err := c.Read(b); err == nil {
				fmt.Fprintf(c, "app/kinds %s\n%s", c.RemoteAddr(), b)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		for port, host := range map[int]string{18082: p.IP4().String(), 18084: "127.0.0.1"} {
			var l net.Listener
			err := p.NS.Do(func() (err error) { l, err = net.Listen("tcp", fmt.Sprintf("%s:%d", host, port)); return err })
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() { defer c.Close(); answer("app/kinds")(c.(*net.TCPConn)) }()
				}
			}()
		}
		var ports strings.Builder
		to := map[int]int{}
		for i, name := range []string{"http", "http2", "grpc", "tcp", "https", "tls", "mongo", "x", "tcp-client-first", "http-instance", "http-localhost"} {
			target := map[string]int{"tcp-client-first": 19091, "http-instance": 18082, "http-localhost": 18084}[name]
			if target == 0 {
				target = 18080
			}
			to[8000+i] = target
			fmt.Fprintf(&ports, "  - {name: %s, port: %d, targetPort: %d}\n", name, 8000+i, target)
		}
		w.put(t, "Service", "app", "kinds", `apiVersion: v1
kind: Service
metadata: {name: kinds, namespace: app}
spec:
  clusterIP: 10.96.10.42
  clusterIPs: [10.96.10.42]
  selector: {app: kinds}
  ports:
`+ports.String())
		for port, target := range to {
			if target == 18084 {
				w.refused(t, w.client, at("10.96.10.42", port), "connection refused")
			} else {
				reaches(t, w.client, at("10.96.10.42", port), "app/kinds")
			}
		}
	})
}

// TestMulticlusterFailover: a service of two networks is served from the client's own;
// when nobody is left there, by way of the other network's gateway, in a tunnel within a
// tunnel; and from its own again when somebody is back.
func TestMulticlusterFailover(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		labels := map[string]string{"app": "global"}
		near := w.pod(t, 0, onehost.PodSpec{Namespace: "app", Name: "near", ServiceAccount: "global", Labels: labels})
		far := w.pod(t, 1, onehost.PodSpec{Namespace: "app", Name: "far-away", ServiceAccount: "global", Labels: map[string]string{"app": "far-away"}})
		edge, self := w.stranger(t, 1, "edge")
		gw, err := edge.ServeGateway(self, on(far, 15008))
		if err != nil {
			t.Fatal(err)
		}
		defer gw.Close()
		vip := at("10.96.10.43", 80)
		w.put(t, "Service", "app", "global", fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: global, namespace: app}
spec: {clusterIP: %s, clusterIPs: [%[1]s], selector: {app: global}, trafficDistribution: PreferClose, ports: [{name: http, port: 80, targetPort: 18080}]}
`, vip.Addr()))
		w.put(t, "Gateway", "app", "edge", fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: app, labels: {topology.istio.io/network: n2}, annotations: {gateway.istio.io/service-account: edge}}
spec:
  gatewayClassName: istio-remote
  addresses: [{type: IPAddress, value: %s}]
  listeners: [{name: mesh, port: 15008, protocol: HBONE, tls: {mode: Terminate, options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}}]
status: {addresses: [{type: IPAddress, value: %[1]s}]}
`, edge.IP4()))
		w.put(t, "WorkloadEntry", "app", "remote", `apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: remote, namespace: app, labels: {app: global}}
spec: {network: n2, serviceAccount: global, labels: {app: global}}
`)
		// The gateway of another network leads to what speaks HBONE.
		reaches(t, w.client, vip, "app/near")
		if err := near.SetReady(false); err != nil {
			t.Fatal(err)
		}
		reaches(t, w.client, vip, "app/far-away")
		asked := <-gw.Asked
		if asked.Peer != "spiffe://cluster.local/ns/app/sa/client" || asked.Authority != "global.app.svc.cluster.local:80" {
			t.Errorf("the gateway was asked %+v", asked)
		}
		if err := near.SetReady(true); err != nil {
			t.Fatal(err)
		}
		reaches(t, w.client, vip, "app/near")
	})
}

// TestPQC: with COMPLIANCE_POLICY=pqc proxies talk to each other by X25519MLKEM768, and
// to nobody who does not.
func TestPQC(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		plain := w.Opts.Env
		w.Opts.Env = append(slices.Clone(plain), "COMPLIANCE_POLICY=pqc")
		restart := func() {
			for _, n := range w.Nodes {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				err := errors.Join(n.StopProxy(), n.StartProxy(ctx), n.WaitProxyReady(ctx))
				cancel()
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Cleanup(func() { w.Opts.Env = plain; restart() })
		restart()
		reaches(t, w.client, on(w.server, 18080), "app/server")
		caller, self := w.stranger(t, 0, "caller")
		for curve, ok := range map[tls.CurveID]bool{tls.X25519MLKEM768: true, tls.X25519: false} {
			c, err := caller.Dial(t.Context(), on(w.server, 15008))
			if err != nil {
				t.Fatal(err)
			}
			cfg := mtls.Client(self, peers(w.server))
			cfg.CurvePreferences = []tls.CurveID{curve}
			conn := tls.Client(c, cfg)
			if err := conn.HandshakeContext(t.Context()); (err == nil) != ok {
				t.Errorf("with %v: %v", curve, err)
			}
			_ = conn.Close()
		}
	})
}
