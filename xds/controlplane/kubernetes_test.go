package controlplane

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/rotation"
)

const (
	ownNS  = "warren-system"
	within = 60 * time.Second
)

var (
	policyGVR  = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: policyResource}
	entryGVR   = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: entryResource}
	gatewayGVR = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}
	serviceGVR = schema.GroupVersionResource{Version: "v1", Resource: "services"}
)

// world is the fakes of an API server.
type world struct {
	t       *testing.T
	client  *fake.Clientset
	dynamic *dynamicfake.FakeDynamicClient
	away    atomic.Bool // it answers 429 to every list and watch
}

func newWorld(t *testing.T, objects ...runtime.Object) *world {
	w := &world{t: t, client: fake.NewClientset(objects...), dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{policyGVR: "AuthorizationPolicyList", entryGVR: "ServiceEntryList", gatewayGVR: "GatewayList"})}
	w.client.Resources = []*metav1.APIResourceList{
		{GroupVersion: "security.istio.io/v1", APIResources: []metav1.APIResource{{Name: policyResource}}},
		{GroupVersion: "networking.istio.io/v1", APIResources: []metav1.APIResource{{Name: entryResource}}},
		{GroupVersion: "gateway.networking.k8s.io/v1", APIResources: []metav1.APIResource{{Name: "gateways"}}},
	}
	w.client.PrependReactor("*", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if w.away.Load() {
			return true, nil, apierrors.NewTooManyRequests("slow down", 1)
		}
		return false, nil, nil
	})
	w.client.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authv1.TokenReview).DeepCopy()
		var claims struct{ Account, Pod string }
		text, err := base64.RawURLEncoding.DecodeString(strings.Split(review.Spec.Token, ".")[1])
		if err != nil || json.Unmarshal(text, &claims) != nil {
			return true, nil, fmt.Errorf("token of the test: %w", err)
		}
		ns, pod, _ := strings.Cut(claims.Pod, "/")
		review.Status = authv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"istio-ca"}, User: authv1.UserInfo{
			Username: "system:serviceaccount:" + ns + ":" + claims.Account, Groups: []string{"system:serviceaccounts"},
			Extra: map[string]authv1.ExtraValue{"authentication.kubernetes.io/pod-name": {pod}, "authentication.kubernetes.io/pod-uid": {"uid-" + pod}},
		}}
		return true, review, nil
	})
	return w
}

// token is one that the fake API server knows to be a pod's.
func token(account, pod string) string {
	text, err := json.Marshal(map[string]any{"aud": "istio-ca", "Account": account, "Pod": pod})
	if err != nil {
		panic(err)
	}
	return "e30." + base64.RawURLEncoding.EncodeToString(text) + ".c2ln"
}

func ns(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

func podOn(node, namespace, name, account, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: "uid-x", Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: account},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

// meshObjects is one pod of the mesh with its node's proxy.
func meshObjects() []runtime.Object {
	web := podOn("n1", "app", "web", "web", "10.0.0.1")
	web.Annotations = map[string]string{"ambient.istio.io/redirection": "enabled"}
	proxy, other := podOn("n1", ownNS, "ztunnel-1", "ztunnel", "10.0.0.2"), podOn("n2", ownNS, "ztunnel-2", "ztunnel", "10.0.0.3")
	proxy.UID, other.UID = "uid-ztunnel-1", "uid-ztunnel-2"
	return []runtime.Object{
		ns("app", map[string]string{"istio.io/dataplane-mode": "ambient"}), ns(ownNS, nil), ns("kube-system", nil), ns("kube-public", nil), web, proxy, other,
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "web"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, ClusterIP: "10.96.0.77", Ports: []corev1.ServicePort{{Port: 80}}}},
	}
}

// startOn starts a control plane on a world, with a leader that is elected quickly.
func startOn(t *testing.T, w *world) *plane {
	t.Helper()
	return startWith(t, w, func(*Config) {})
}

func startWith(t *testing.T, w *world, change func(*Config)) *plane {
	t.Helper()
	cfg := Defaults()
	change(&cfg)
	cfg.Kubernetes, cfg.Namespace = true, ownNS
	cfg.Listen, cfg.HealthListen, cfg.MetricsListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	p := &plane{t: t, cfg: cfg, log: &lockedBuffer{}}
	cp, err := newControlPlane(cfg, slog.New(slog.NewTextHandler(p.log, nil)), func(cp *ControlPlane, td spiffeid.TrustDomain) error {
		return cp.useClients(clients{w.client, w.dynamic, w.client}, td)
	})
	if err != nil {
		t.Fatal(err)
	}
	p.cp = cp
	p.runs()
	return p
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: did not come", what)
		}
	}
}

func (p *plane) ready() (bool, string) {
	code, body := get(p.t, "http://"+p.cp.listeners.health.Addr().String()+"/healthz/ready")
	return code == http.StatusOK, body
}

func (w *world) rootOf(namespace string) string {
	m, err := w.client.CoreV1().ConfigMaps(namespace).Get(w.t.Context(), "istio-ca-root-cert", metav1.GetOptions{})
	if err != nil {
		return ""
	}
	return m.Data[rootKey]
}

func (w *world) dial(addr, host string) *grpc.ClientConn {
	w.t.Helper()
	roots := func() ([]byte, error) { return []byte(w.rootOf("app")), nil }
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(mtls.ToServer(roots, host, ""))))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// Everything together: what a proxy needs it finds in the cluster, and may have what is
// its node's and nothing else.
func TestKubernetes(t *testing.T) {
	w := newWorld(t, meshObjects()...)
	if err := w.dynamic.Tracker().Create(policyGVR, authorizationPolicy("deny", "DENY"), "app"); err != nil {
		t.Fatal(err)
	}
	p := startOn(t, w)
	eventually(t, "readiness", func() bool { ok, _ := p.ready(); return ok })
	for _, namespace := range []string{"app", ownNS, "kube-system"} {
		eventually(t, "root of "+namespace, func() bool { return w.rootOf(namespace) != "" })
	}
	if w.rootOf("kube-public") != "" {
		t.Error("kube-public has a root")
	}
	cc := w.dial(p.cp.Addr().String(), "warren-controlplane.warren-system.svc")
	proxy := token("ztunnel", ownNS+"/ztunnel-1")
	subscribe(t, cc, p.as(proxy)).until(webWorkload, webService, "Kubernetes//Pod/warren-system/ztunnel-1", "Kubernetes//Pod/warren-system/ztunnel-2", "app/deny")
	if _, err := subscribe(t, cc, p.as(token("web", "app/web"))).stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a pod reads the mesh: %v", err)
	}
	const web = "spiffe://cluster.local/ns/app/sa/web"
	resp, err := sign(t, cc, p.as(proxy), web)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(resp.GetCertChain()[0]))
	if leaf, err := x509.ParseCertificate(block.Bytes); err != nil || leaf.URIs[0].String() != web {
		t.Errorf("leaf for %v (%v)", leaf.URIs, err)
	}
	if last := resp.GetCertChain()[len(resp.GetCertChain())-1]; strings.TrimSpace(last) != strings.TrimSpace(w.rootOf("app")) {
		t.Error("the root in the answer is not that of the ConfigMap")
	}
	for name, token := range map[string]string{"another node's proxy": token("ztunnel", ownNS+"/ztunnel-2"), "a pod": token("web", "app/web"), "nobody": "junk"} {
		if _, err := sign(t, cc, p.as(token), web); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v, want Unauthenticated", name, err)
		}
	}
	eventually(t, "status of the policy", func() bool { return conditionOf(w, "deny")["status"] == "True" })
	_, metrics := get(t, "http://"+p.cp.listeners.metrics.Addr().String()+"/metrics")
	for _, want := range []string{`warren_kube_synced{kind="Pod"} 1`, `warren_kube_up{kind="AuthorizationPolicy"} 1`, `warren_kube_objects{kind="Namespace"} 4`, "warren_leader 1", `warren_kube_writes_total{what="root-configmap"} 3`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %q", want)
		}
	}
	if strings.Contains(p.log.String(), "PRIVATE KEY") || strings.Contains(p.log.String(), proxy) {
		t.Error("a secret is in the log")
	}
}

// Before the API server answers the control plane says so, and what it waits for; once
// it has read everything an API server that is away leaves it serving.
func TestApiServerAway(t *testing.T) {
	w := newWorld(t, meshObjects()...)
	w.away.Store(true)
	p := startOn(t, w)
	eventually(t, "both reasons", func() bool {
		ok, body := p.ready()
		return !ok && strings.Contains(body, "Pod (") && strings.Contains(body, "slow down") && strings.Contains(body, "CA has not been read yet: secret")
	})
	w.away.Store(false)
	eventually(t, "readiness", func() bool { ok, _ := p.ready(); return ok })
	eventually(t, "root", func() bool { return w.rootOf("app") != "" })
	cc := w.dial(p.cp.Addr().String(), "istiod.istio-system.svc")
	proxy := token("ztunnel", ownNS+"/ztunnel-1")
	if _, err := sign(t, cc, p.as(proxy), "spiffe://cluster.local/ns/app/sa/web"); err != nil {
		t.Fatal(err)
	}
	feed := p.cp.feed.(kubeFeed)
	if stale := feed.Stale(); len(stale) > 0 {
		t.Errorf("stale = %v", stale)
	}
}

// A replica may lead before it can read the CA: what it could not write then it writes
// when it can, though nothing else has changed.
func TestLeaderBeforeItsCA(t *testing.T) {
	w := newWorld(t, meshObjects()...)
	var withheld atomic.Bool
	withheld.Store(true)
	var listed atomic.Int64
	w.client.PrependReactor("*", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return withheld.Load(), nil, apierrors.NewTooManyRequests("slow down", 1)
	})
	w.client.PrependReactor("list", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		listed.Add(1)
		return false, nil, nil
	})
	p := startOn(t, w)
	eventually(t, "a leader that looks at ConfigMaps", func() bool { return p.cp.cluster.leader.leads.Load() && listed.Load() > 0 })
	for range 20 { // it has looked at every namespace meanwhile
		time.Sleep(5 * time.Millisecond)
		if w.rootOf("app") != "" {
			t.Fatal("there is a root and no CA")
		}
	}
	withheld.Store(false)
	for _, namespace := range []string{"app", ownNS, "kube-system"} {
		eventually(t, "root of "+namespace, func() bool { return w.rootOf(namespace) != "" })
	}
}

// Replicas that start together have one root, whoever is first.
func TestReplicasShareTheRoot(t *testing.T) {
	w := newWorld(t)
	log := &lockedBuffer{}
	const replicas = 8
	roots := make([]string, replicas)
	var all sync.WaitGroup
	for i := range replicas {
		all.Go(func() {
			ca, err := w.load(log)
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = string(ca.RootsPEM())
		})
	}
	all.Wait()
	for _, r := range roots {
		if r == "" || r != roots[0] {
			t.Fatal("not one root")
		}
	}
	if n := strings.Count(log.String(), "secret made"); n != 1 {
		t.Errorf("made %d times", n)
	}
	s, err := w.client.CoreV1().Secrets(ownNS).Get(t.Context(), ownSecret, metav1.GetOptions{})
	if err != nil || len(s.Data["ca-key.pem"]) == 0 || string(s.Data["root-cert.pem"]) != roots[0] {
		t.Fatalf("secret has %d entries, %v", len(s.Data), err)
	}
	if strings.Contains(log.String(), "PRIVATE") {
		t.Error("the key is in the log")
	}
}

// keeper is the CA of one replica.
func (w *world) keeper(log *lockedBuffer, overlap time.Duration) *rotation.Keeper {
	l := slog.New(slog.NewTextHandler(log, nil))
	return rotation.New(rotation.Config{
		Store: &caSecret{client: w.client, namespace: ownNS, td: meshDomain, log: l}, Replica: "replica." + rand.Text()[:8], Overlap: overlap, Log: l,
	})
}

// load is the CA that a replica which starts has.
func (w *world) load(log *lockedBuffer) (*authority.Authority, error) {
	k := w.keeper(log, 0)
	err := k.Load(w.t.Context(), time.Now())
	return k.Authority(), err
}

// The Secret that somebody put there goes before our own; what is wrong with it is said.
func TestPluggedSecret(t *testing.T) {
	w := newWorld(t)
	log := &lockedBuffer{}
	own, err := w.load(log)
	if err != nil {
		t.Fatal(err)
	}
	made, err := w.client.CoreV1().Secrets(ownNS).Get(t.Context(), ownSecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	other := newWorld(t)
	foreign, err := other.load(log)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := other.client.CoreV1().Secrets(ownNS).Get(t.Context(), ownSecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data map[string][]byte
		want string // roots
		err  string
	}{
		"istio's names": {theirs.Data, string(foreign.RootsPEM()), ""},
		"a TLS secret":  {map[string][]byte{"tls.crt": theirs.Data["ca-cert.pem"], "tls.key": theirs.Data["ca-key.pem"], "ca.crt": theirs.Data["root-cert.pem"]}, string(foreign.RootsPEM()), ""},
		"empty":         {nil, "", "neither ca-cert.pem"},
		"another's key": {map[string][]byte{"ca-cert.pem": theirs.Data["ca-cert.pem"], "ca-key.pem": made.Data["ca-key.pem"]}, "", "not the key"},
	} {
		t.Run(name, func(t *testing.T) {
			put(t, w, pluggedSecret, c.data)
			ca, err := w.load(log)
			switch {
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), ownNS+"/"+pluggedSecret)):
				t.Errorf("err = %v, want %q", err, c.err)
			case c.err == "" && (err != nil || string(ca.RootsPEM()) != c.want || c.want == string(own.RootsPEM())):
				t.Errorf("another root, or %v", err)
			}
		})
	}
}

func put(t *testing.T, w *world, name string, data map[string][]byte) {
	t.Helper()
	secrets := w.client.CoreV1().Secrets(ownNS)
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ownNS, Name: name}, Data: data}
	if _, err := secrets.Update(t.Context(), s, metav1.UpdateOptions{}); apierrors.IsNotFound(err) {
		_, err = secrets.Create(t.Context(), s, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	} else if err != nil {
		t.Fatal(err)
	}
}

// A Secret that disappears is put back with the same root; one that changes is told of.
func TestSecretChangesWhileRunning(t *testing.T) {
	w := newWorld(t)
	log := &lockedBuffer{}
	s := w.keeper(log, 0)
	if err := s.Load(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	ca := s.Authority()
	s.Compare(t.Context(), time.Now())
	if why := s.Differs(); why != "" {
		t.Errorf("differs: %s", why)
	}
	if err := w.client.CoreV1().Secrets(ownNS).Delete(t.Context(), ownSecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.away.Store(true)
	s.Compare(t.Context(), time.Now())
	w.away.Store(false)
	if why := s.Differs(); why != "" {
		t.Errorf("an API server that is away makes it differ: %s", why)
	}
	s.Compare(t.Context(), time.Now())
	again, err := w.load(log)
	if err != nil || string(again.RootsPEM()) != string(ca.RootsPEM()) {
		t.Errorf("another root after the Secret was gone: %v", err)
	}
	put(t, w, ownSecret, map[string][]byte{"ca-cert.pem": []byte("x"), "ca-key.pem": []byte("y")})
	s.Compare(t.Context(), time.Now())
	if why := s.Differs(); !strings.Contains(why, "is not used") {
		t.Errorf("differs = %q", why)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("told %d times:\n%s", n, log)
	}
}

func authorizationPolicy(name, action string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"namespace": "app", "name": name, "generation": int64(1)},
		"spec":     map[string]any{"action": action, "rules": []any{map[string]any{"from": []any{map[string]any{"source": map[string]any{"namespaces": []any{"a"}}}}}}},
	}}
}

func conditionOf(w *world, policy string) map[string]any {
	p, err := w.dynamic.Resource(policyGVR).Namespace("app").Get(w.t.Context(), policy, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	list, _, _ := unstructured.NestedSlice(p.Object, "status", "conditions")
	for _, c := range list {
		if c, ok := c.(map[string]any); ok && c["type"] == conditionType {
			return c
		}
	}
	return nil
}

// A replica that finds no Secret, and is too late to make it, takes that of the first.
func TestAnotherReplicaWasFirst(t *testing.T) {
	other := newWorld(t)
	first, err := other.load(&lockedBuffer{})
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := other.client.CoreV1().Secrets(ownNS).Get(t.Context(), ownSecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.client.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return false, nil, w.client.Tracker().Add(theirs) // in the moment between looking and making
	})
	log := &lockedBuffer{}
	ca, err := w.load(log)
	if err != nil || string(ca.RootsPEM()) != string(first.RootsPEM()) {
		t.Errorf("not the root of the first: %v", err)
	}
	if strings.Contains(log.String(), "secret made") {
		t.Error("made a second one")
	}
}

func (p *plane) runs() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.cp.Run(ctx) }()
	p.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	p.t.Cleanup(func() {
		if err := p.stop(); err != nil {
			p.t.Errorf("run: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
		if p.t.Failed() || testing.Verbose() {
			p.t.Logf("log:\n%s", p.log)
		}
	})
}
