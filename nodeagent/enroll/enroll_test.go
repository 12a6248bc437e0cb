package enroll_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/xds/translate"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// world is a World whose objects the test sets.
type world struct {
	mu      sync.Mutex
	objects translate.Objects
	view    *enroll.View
	changed chan struct{}
	whole   bool
}

func newWorld() *world {
	w := &world{changed: make(chan struct{})}
	w.namespace("app", map[string]string{translate.LabelDataplaneMode: "ambient"})
	w.namespace("plain", nil)
	return w
}

func (w *world) View() (*enroll.View, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.view, w.changed
}

func (w *world) change(do func(o *translate.Objects)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.objects.Pods = slices.Clone(w.objects.Pods)
	w.objects.Namespaces = slices.Clone(w.objects.Namespaces)
	do(&w.objects)
	w.view = enroll.NewView(w.objects, enroll.ViewOptions{Node: "node", OwnNamespace: "warren-system", Whole: w.whole})
	close(w.changed)
	w.changed = make(chan struct{})
}

// podsAtOnce makes running pods of sandboxes, by UID.
func (w *world) podsAtOnce(boxes map[string]*sandbox) {
	w.change(func(o *translate.Objects) {
		for uid, s := range boxes {
			o.Pods = append(o.Pods, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: s.name, UID: types.UID(uid)},
				Spec:       corev1.PodSpec{NodeName: "node", ServiceAccountName: "sa"},
				Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.1.2.3"}}},
			})
		}
	})
}

func (w *world) namespace(name string, labels map[string]string) {
	w.change(func(o *translate.Objects) {
		o.Namespaces = append(slices.DeleteFunc(o.Namespaces, func(n *corev1.Namespace) bool { return n.Name == name }),
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
	})
}

func (w *world) pod(namespace, name, uid string, edit ...func(*corev1.Pod)) {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{NodeName: "node", ServiceAccountName: "sa"},
	}
	for _, e := range edit {
		e(p)
	}
	w.remove(namespace, name)
	w.change(func(o *translate.Objects) { o.Pods = append(o.Pods, p) })
}

func (w *world) remove(namespace, name string) {
	w.change(func(o *translate.Objects) {
		o.Pods = slices.DeleteFunc(o.Pods, func(p *corev1.Pod) bool { return p.Namespace == namespace && p.Name == name })
	})
}

// flows is what the proxy says it carries.
type flows struct {
	mu    sync.Mutex
	n     int
	times int // it was asked
	since func(time.Time)
	err   error // why it does not say
}

func (f *flows) Flows(_ context.Context, _ string, since time.Time) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.times++
	if f.since != nil {
		f.since(since)
	}
	return f.n, f.err
}

func (f *flows) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.times
}

func (f *flows) set(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n = n
}

// node is an agent's enroller with everything real around it but the proxy.
type node struct {
	t       testing.TB
	dir     string
	world   *world
	flows   *flows
	backend redirect.Backend
	client  *event.Client

	e     *enroll.Enroller
	stop  func() // of the agent
	times enroll.Times

	config  func(*enroll.Config) // changes it before each start
	log     logText
	notices *notices
}

// notices are what was told.
type notices struct {
	mu  sync.Mutex
	all []enroll.Notice
}

func (n *notices) tell(notice enroll.Notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, notice)
}

// about says whether something about a pod was told that has this text in it.
func (n *notices) about(pod, text string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.all, func(o enroll.Notice) bool { return o.Pod.Name == pod && strings.Contains(o.Text, text) })
}

// logText is what the agent's log says.
type logText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// has says whether one line of it has all of these.
func (l *logText) has(texts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if !slices.ContainsFunc(texts, func(t string) bool { return !strings.Contains(line, t) }) {
			return true
		}
	}
	return false
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func newNode(t *testing.T) *node {
	t.Helper()
	nstest.Require(t)
	b, err := redirect.Detect()
	nstest.Need(t, err)
	n := &node{
		t: t, dir: t.TempDir(), world: newWorld(), flows: new(flows), backend: b, notices: new(notices), config: func(*enroll.Config) {},
		times: enroll.Times{Pod: 300 * time.Millisecond, Add: 2500 * time.Millisecond, Drain: 5 * time.Second, Sweep: 50 * time.Millisecond, Retry: 20 * time.Millisecond, Rival: 50 * time.Millisecond},
	}
	return n
}

func (n *node) state() string { return filepath.Join(n.dir, "state") }
func (n *node) zds() string   { return filepath.Join(n.dir, "z.sock") }

// start brings the agent up, and returns when its sockets are there.
func (n *node) start() *node {
	n.t.Helper()
	n.client = &event.Client{Path: filepath.Join(n.dir, event.SocketName)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var snapshot func() []zds.Workload
	server := zds.NewServer(n.zds(), func() []zds.Workload { return snapshot() }, quiet())
	cfg := enroll.Config{
		StateDir: n.state(), HostRoot: "/", BootID: "boot", Backend: n.backend, Named: redirect.Named,
		Redirect: event.Redirect{IPv6: true, ProbeIP4: redirect.ProbeIP4(), ProbeIP6: redirect.ProbeIP6()},
		Proxy:    server, World: n.world, Flows: n.flows, Log: slog.New(slog.NewTextHandler(&n.log, nil)), Times: n.times, Tell: n.notices.tell,
	}
	n.config(&cfg)
	e, err := enroll.New(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.e, snapshot = e, e.Snapshot
	if err := e.Recover(ctx); err != nil {
		n.t.Fatal(err)
	}
	lz, err := zds.Listen("unixpacket", n.zds())
	if err != nil {
		n.t.Fatal(err)
	}
	le, err := event.Listen(n.client.Path)
	if err != nil {
		n.t.Fatal(err)
	}
	run := func(what string, fn func() error) {
		wg.Go(func() {
			if err := fn(); err != nil {
				n.t.Errorf("%s: %v", what, err)
			}
		})
	}
	run("zds", func() error { return server.Serve(ctx, lz) })
	run("event", func() error { return event.Serve(ctx, le, e, quiet()) })
	run("enroll", func() error { return e.Run(ctx) })
	n.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		e.Close()
	})
	n.t.Cleanup(n.stop)
	return n
}

func (n *node) proxy() (f *zds.FakeProxy, stop func()) {
	n.t.Helper()
	f = zds.NewFakeProxy(n.zds())
	return f, n.connect(f)
}

func (n *node) connect(f *zds.FakeProxy) (stop func()) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	n.t.Cleanup(stop)
	n.until("the proxy has its snapshot", f.Synced)
	return stop
}

func (n *node) until(what string, ok func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("it never came to be that %s; the pods: %+v", what, n.e.Report())
		}
	}
}

// sandbox is a pod's, as a runtime has it.
type sandbox struct {
	key            event.Key
	name, ns, uid  string
	netns          *netns.NS
	path           string
	howProgrammed  string
	programmedWith event.Redirect
}

func (n *node) sandbox(namespace, name, uid, container string) *sandbox {
	n.t.Helper()
	ns, path := nstest.NewNS(n.t, container)
	n.t.Cleanup(func() { n.stop() }) // before the namespace goes, which the agent holds
	return &sandbox{key: event.Key{ContainerID: container, IfName: "eth0"}, name: name, ns: namespace, uid: uid, netns: ns, path: path}
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// add is the plugin's ADD.
func (n *node) add(s *sandbox) (event.Answer, error) {
	n.t.Helper()
	return n.addWith(s, func(r event.Redirect) (string, error) {
		s.programmedWith = r
		if s.howProgrammed == event.ByAgent {
			return event.ByAgent, nil
		}
		return event.ByPlugin, n.backend.Apply(s.netns, config(r))
	})
}

func (n *node) addWith(s *sandbox, program func(event.Redirect) (string, error)) (event.Answer, error) {
	return n.client.Add(within(n.t), event.Add{
		Key: s.key, Network: "net", PodName: s.name, PodNamespace: s.ns, PodUID: s.uid, Netns: s.path,
		IPs: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24")},
	}, s.netns.File(), program)
}

func (n *node) mustAdd(s *sandbox) {
	n.t.Helper()
	a, err := n.add(s)
	if err != nil || a.Action != event.RedirectSo {
		n.t.Fatalf("ADD: %+v, %v", a, err)
	}
}

func config(r event.Redirect) redirect.Config {
	return redirect.Config{
		IPv4: true, IPv6: r.IPv6, DNS: r.DNS, BypassInbound: r.BypassInbound, VirtualInterfaces: r.VirtualInterfaces,
		ProbeIP4: r.ProbeIP4, ProbeIP6: r.ProbeIP6,
	}
}

// captured says whether the rules are those that the agent asked for.
func (n *node) captured(s *sandbox) bool {
	n.t.Helper()
	r := s.programmedWith
	if !r.ProbeIP4.IsValid() {
		r = event.Redirect{IPv6: true, ProbeIP4: redirect.ProbeIP4(), ProbeIP6: redirect.ProbeIP6()}
	}
	diffs, err := n.backend.Verify(s.netns, config(r))
	if err != nil {
		n.t.Fatal(err)
	}
	return len(diffs) == 0
}

// clean says whether nothing of ours is in the namespace: then taking everything
// away changes nothing, which is seen by all rules being reported as missing.
func (n *node) clean(s *sandbox) bool {
	n.t.Helper()
	before, err := n.backend.Verify(s.netns, redirect.Defaults())
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.backend.Remove(s.netns); err != nil {
		n.t.Fatal(err)
	}
	after, err := n.backend.Verify(s.netns, redirect.Defaults())
	if err != nil {
		n.t.Fatal(err)
	}
	return slices.Equal(before, after)
}

func (n *node) attachments() (names []string) {
	n.t.Helper()
	files, err := os.ReadDir(filepath.Join(n.state(), "attachments"))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names
}

func (n *node) phase(uid string) enroll.Phase {
	for _, r := range n.e.Report() {
		if r.UID == uid {
			return r.Phase
		}
	}
	return enroll.PhaseAbsent
}

func wantRefusal(t *testing.T, err error, retryable bool, text string) {
	t.Helper()
	var refusal *event.Error
	if !errors.As(err, &refusal) {
		t.Fatalf("got %v, want a refusal", err)
	}
	if refusal.Retryable != retryable || !strings.Contains(refusal.Error(), text) {
		t.Errorf("got %+v, want %q, retryable %t", refusal, text, retryable)
	}
}

// inPod runs a program in a namespace, and returns what it prints.
func inPod(t testing.TB, ns *netns.NS, name string, args ...string) string {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out.String())
	}
	return out.String()
}
