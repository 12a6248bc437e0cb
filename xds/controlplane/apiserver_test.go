//go:build apiserver

package controlplane

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/mtls"
)

// kubeBin names the folder with kube-apiserver and etcd that these tests use. There is
// no package to take them from, so they are behind a build tag: make test-apiserver.
const kubeBin = "WARREN_KUBE_BIN"

var crdGVR = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// apiServer is a real API server over a real etcd, and nothing else of a cluster: pods
// are objects that the test writes.
type apiServer struct {
	t    *testing.T
	bin  string
	dir  string
	port int
	etcd string
	clients
	server *exec.Cmd
}

func startAPIServer(t *testing.T) *apiServer {
	t.Helper()
	bin := os.Getenv(kubeBin)
	if bin == "" {
		t.Fatalf("%s is not set: name the folder with kube-apiserver and etcd", kubeBin)
	}
	s := &apiServer{t: t, bin: bin, dir: t.TempDir()}
	client, peer := freePort(t), freePort(t)
	s.etcd, s.port = fmt.Sprintf("http://127.0.0.1:%d", client), freePort(t)
	peers := fmt.Sprintf("http://127.0.0.1:%d", peer)
	etcd := s.spawn("etcd", "--data-dir="+filepath.Join(s.dir, "etcd"), "--unsafe-no-fsync", "--listen-client-urls="+s.etcd, "--advertise-client-urls="+s.etcd,
		"--listen-peer-urls="+peers, "--initial-advertise-peer-urls="+peers, "--initial-cluster=default="+peers)
	t.Cleanup(func() { end(etcd) })
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"sa.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		"tokens": []byte("admintoken,admin,1,system:masters\n"),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.up()
	t.Cleanup(func() { s.down() })
	return s
}

func (s *apiServer) spawn(program string, args ...string) *exec.Cmd {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, program+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return cmd
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(syscall.SIGCONT)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// up starts the API server and waits until it is ready.
func (s *apiServer) up() {
	s.t.Helper()
	sa := filepath.Join(s.dir, "sa.key")
	s.server = s.spawn("kube-apiserver", "--etcd-servers="+s.etcd, fmt.Sprintf("--secure-port=%d", s.port), "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		"--cert-dir="+filepath.Join(s.dir, "certs"), "--service-account-issuer=https://issuer.test", "--service-account-key-file="+sa, "--service-account-signing-key-file="+sa,
		"--authorization-mode=RBAC", "--token-auth-file="+filepath.Join(s.dir, "tokens"), "--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none",
		// There is no controller to make a ServiceAccount for every namespace.
		"--disable-admission-plugins=ServiceAccount")
	eventually(s.t, "certificate", func() bool { _, err := os.Stat(filepath.Join(s.dir, "certs", "apiserver.crt")); return err == nil })
	c, err := connect(s.config("admintoken"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.clients = c
	eventually(s.t, "API server", func() bool {
		answer, err := c.kubernetes.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(s.t.Context())
		return err == nil && bytes.Equal(answer, []byte("ok"))
	})
}

func (s *apiServer) down() { end(s.server) }

func (s *apiServer) config(token string) *rest.Config {
	return &rest.Config{Host: fmt.Sprintf("https://127.0.0.1:%d", s.port), BearerToken: token, QPS: 200, Burst: 400,
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(s.dir, "certs", "apiserver.crt")}}
}

// kubeconfig writes one for a token.
func (s *apiServer) kubeconfig(token string) string {
	s.t.Helper()
	cfg := clientcmdapi.NewConfig()
	rest := s.config(token)
	cfg.Clusters["c"] = &clientcmdapi.Cluster{Server: rest.Host, CertificateAuthority: rest.CAFile}
	cfg.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: token}
	cfg.Contexts["c"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	cfg.CurrentContext = "c"
	path := filepath.Join(s.t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*cfg, path); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// moduleFile is a file of one of our modules.
func moduleFile(t *testing.T, module, name string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), name)
}

// define creates the definitions in a file whose names are asked for.
func (s *apiServer) define(file string, names ...string) {
	s.t.Helper()
	f, err := os.Open(file)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	for r := utilyaml.NewYAMLOrJSONDecoder(f, 1<<20); ; {
		var crd unstructured.Unstructured
		if err := r.Decode(&crd.Object); err == io.EOF {
			break
		} else if err != nil {
			s.t.Fatal(err)
		}
		if slices.Contains(names, crd.GetName()) {
			if _, err := s.dynamic.Resource(crdGVR).Create(s.t.Context(), &crd, metav1.CreateOptions{}); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

func (s *apiServer) defineIstio() {
	s.define(moduleFile(s.t, "istio.io/istio", "manifests/charts/base/files/crd-all.gen.yaml"), "authorizationpolicies.security.istio.io", "peerauthentications.security.istio.io",
		"serviceentries.networking.istio.io", "workloadentries.networking.istio.io")
}

// needs is what a control plane must be allowed to do, in the whole cluster and in its
// own namespace.
func needs() (cluster, own []rbacv1.PolicyRule) {
	rule := func(group, resources string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: strings.Split(resources, " "), Verbs: verbs}
	}
	named := func(group, resource string, names []string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, ResourceNames: names, Verbs: verbs}
	}
	return []rbacv1.PolicyRule{
			rule("", "pods services nodes namespaces", "list", "watch"),
			rule("discovery.k8s.io", "endpointslices", "list", "watch"),
			rule("security.istio.io", "authorizationpolicies", "get", "list", "watch"),
			rule("security.istio.io", "peerauthentications", "list", "watch"),
			rule("security.istio.io", "authorizationpolicies/status", "patch"),
			rule("networking.istio.io", "serviceentries workloadentries", "list", "watch"),
			rule("networking.istio.io", "serviceentries", "get"),
			rule("networking.istio.io", "serviceentries/status", "patch"),
			rule("", "services", "get"),
			rule("", "services/status", "patch"),
			rule("gateway.networking.k8s.io", "gateways gatewayclasses", "list", "watch"),
			rule("", "configmaps", "create"),
			named("", "configmaps", []string{"istio-ca-root-cert"}, "list", "watch", "patch"),
			rule("authentication.k8s.io", "tokenreviews", "create"),
		}, []rbacv1.PolicyRule{
			rule("", "secrets", "create"),
			named("", "secrets", []string{pluggedSecret}, "get"),
			named("", "secrets", []string{ownSecret, rotationSecret}, "get", "update"),
			named("", "configmaps", []string{issuedMap}, "get", "patch"),
			rule("coordination.k8s.io", "leases", "create"),
			named("coordination.k8s.io", "leases", []string{leaseName}, "get", "update"),
		}
}

// account makes a service account that may do what a control plane needs and no more,
// and returns a token of it.
func (s *apiServer) account() string {
	s.t.Helper()
	ctx := s.t.Context()
	must := func(_ any, err error) {
		s.t.Helper()
		if err != nil && !apierrors.IsAlreadyExists(err) {
			s.t.Fatal(err)
		}
	}
	cluster, own := needs()
	name := metav1.ObjectMeta{Name: fieldManager}
	subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: ownNS, Name: fieldManager}}
	must(s.kubernetes.CoreV1().ServiceAccounts(ownNS).Create(ctx, &corev1.ServiceAccount{ObjectMeta: name}, metav1.CreateOptions{}))
	rbac := s.kubernetes.RbacV1()
	must(rbac.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: name, Rules: cluster}, metav1.CreateOptions{}))
	must(rbac.Roles(ownNS).Create(ctx, &rbacv1.Role{ObjectMeta: name, Rules: own}, metav1.CreateOptions{}))
	must(rbac.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: name, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: fieldManager}}, metav1.CreateOptions{}))
	must(rbac.RoleBindings(ownNS).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: name, Subjects: subjects, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: fieldManager}}, metav1.CreateOptions{}))
	return s.token(fieldManager, "", "")
}

// token asks for one, bound to a pod unless that is empty.
func (s *apiServer) token(account, pod, audience string) string {
	s.t.Helper()
	req := &authv1.TokenRequest{}
	if audience != "" {
		req.Spec.Audiences = []string{audience}
	}
	if pod != "" {
		p, err := s.kubernetes.CoreV1().Pods(ownNS).Get(s.t.Context(), pod, metav1.GetOptions{})
		if err != nil {
			s.t.Fatal(err)
		}
		req.Spec.BoundObjectRef = &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod, UID: p.UID}
	}
	out, err := s.kubernetes.CoreV1().ServiceAccounts(ownNS).CreateToken(s.t.Context(), account, req, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return out.Status.Token
}

// pod writes a pod that runs.
func (s *apiServer) pod(p *corev1.Pod) {
	s.t.Helper()
	p.UID = ""
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i"}}
	status := p.Status
	made, err := s.kubernetes.CoreV1().Pods(p.Namespace).Create(s.t.Context(), p, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	made.Status = status
	if _, err := s.kubernetes.CoreV1().Pods(p.Namespace).UpdateStatus(s.t.Context(), made, metav1.UpdateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// mesh writes what meshObjects holds.
func (s *apiServer) mesh() {
	s.t.Helper()
	for _, o := range meshObjects() {
		var err error
		switch o := o.(type) {
		case *corev1.Namespace:
			_, err = s.kubernetes.CoreV1().Namespaces().Create(s.t.Context(), o, metav1.CreateOptions{})
		case *corev1.Service:
			_, err = s.kubernetes.CoreV1().Services(o.Namespace).Create(s.t.Context(), o, metav1.CreateOptions{})
		case *corev1.Pod:
			s.pod(o)
		}
		if err != nil && !apierrors.IsAlreadyExists(err) {
			s.t.Fatal(err)
		}
	}
	_, err := s.kubernetes.CoreV1().ServiceAccounts(ownNS).Create(s.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "ztunnel"}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

// controlPlane starts one with the rights that it needs and no others.
func (s *apiServer) controlPlane(change ...func(*Config)) *plane {
	s.t.Helper()
	cfg := Defaults()
	for _, c := range change {
		c(&cfg)
	}
	cfg.Kubernetes, cfg.Namespace, cfg.Kubeconfig = true, ownNS, s.kubeconfig(s.account())
	cfg.Listen, cfg.HealthListen, cfg.MetricsListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	p := &plane{t: s.t, cfg: cfg, log: &lockedBuffer{}}
	cp, err := New(cfg, slog.New(slog.NewTextHandler(p.log, nil)))
	if err != nil {
		s.t.Fatal(err)
	}
	p.cp = cp
	p.runs()
	return p
}

func (s *apiServer) root(namespace string) string {
	m, err := s.kubernetes.CoreV1().ConfigMaps(namespace).Get(s.t.Context(), "istio-ca-root-cert", metav1.GetOptions{})
	if err != nil {
		return ""
	}
	return m.Data[rootKey]
}

func (s *apiServer) dial(p *plane) *grpc.ClientConn {
	s.t.Helper()
	root := s.root("app")
	roots := func() ([]byte, error) { return []byte(root), nil }
	cc, err := grpc.NewClient(p.cp.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(mtls.ToServer(roots, "warren-controlplane.warren-system.svc", ""))))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// TestRealAPIServer is the life of two replicas on a real API server: definitions that
// come late and go, real tokens, one root, status, and an API server that goes away.
func TestRealAPIServer(t *testing.T) {
	s := startAPIServer(t)
	s.mesh()
	one, two := s.controlPlane(), s.controlPlane()
	for _, p := range []*plane{one, two} {
		eventually(t, "readiness", func() bool { ok, _ := p.ready(); return ok })
	}
	if a, b := one.cp.roots(), two.cp.roots(); a != b || a == "" {
		t.Fatal("two replicas have two roots")
	}
	eventually(t, "root", func() bool { return s.root("app") == one.cp.roots() })

	proxy := s.token("ztunnel", "ztunnel-1", "istio-ca")
	cc := s.dial(two)
	stream := subscribe(t, cc, two.as(proxy))
	base := []string{webWorkload, webService, "Kubernetes//Pod/warren-system/ztunnel-1", "Kubernetes//Pod/warren-system/ztunnel-2", "default/kubernetes.default.svc.cluster.local"}
	const web = "spiffe://cluster.local/ns/app/sa/web"
	if _, err := sign(t, cc, two.as(proxy), web); err != nil {
		t.Error(err)
	}
	for name, token := range map[string]string{"another node": s.token("ztunnel", "ztunnel-2", "istio-ca"), "no pod": s.token("ztunnel", "", "istio-ca"), "another audience": s.token("ztunnel", "ztunnel-1", "")} {
		if _, err := sign(t, cc, two.as(token), web); err == nil {
			t.Errorf("%s: has a certificate", name)
		}
	}
	s.policies(stream, base)
	s.repairs(one)
	s.goesAway(one, two, cc, proxy)
}

// policies has the definitions come, a policy be served and told of, and all of it go.
func (s *apiServer) policies(stream *client, base []string) {
	t := s.t
	s.defineIstio()
	create := func() bool {
		_, err := s.dynamic.Resource(policyGVR).Namespace("app").Create(t.Context(), authorizationPolicy("deny", "DENY"), metav1.CreateOptions{})
		return err == nil
	}
	eventually(t, "a policy", create)
	stream.until(append(slices.Clone(base), "app/deny")...)
	policy := func() *unstructured.Unstructured {
		p, err := s.dynamic.Resource(policyGVR).Namespace("app").Get(t.Context(), "deny", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	told := func(generation int64) bool {
		list, _, _ := unstructured.NestedSlice(policy().Object, "status", "conditions")
		for _, c := range list {
			c := c.(map[string]any)
			if c["type"] == conditionType && c["status"] == "True" && c["observedGeneration"] == fmt.Sprint(generation) {
				return true
			}
		}
		return false
	}
	eventually(t, "its status", func() bool { return told(1) })
	version := policy().GetResourceVersion()
	if _, err := s.dynamic.Resource(policyGVR).Namespace("app").Patch(t.Context(), "deny", types.MergePatchType, []byte(`{"spec":{"rules":[{"to":[{"operation":{"methods":["GET"]}}]}]}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its new status", func() bool { return told(2) })
	if v := policy().GetResourceVersion(); v == version {
		t.Error("nothing was written")
	}
	if err := s.dynamic.Resource(crdGVR).Delete(t.Context(), "authorizationpolicies.security.istio.io", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	stream.until(base...)
}

// repairs changes and removes the root ConfigMap.
func (s *apiServer) repairs(p *plane) {
	t := s.t
	maps := s.kubernetes.CoreV1().ConfigMaps("app")
	if _, err := maps.Patch(t.Context(), "istio-ca-root-cert", types.MergePatchType, []byte(`{"data":{"root-cert.pem":"forged"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "repair", func() bool { return s.root("app") == p.cp.roots() })
	if err := maps.Delete(t.Context(), "istio-ca-root-cert", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "return", func() bool { return s.root("app") == p.cp.roots() })
}

// goesAway has the API server stop and return: what was read is served all the
// time, it is said, and news are taken after.
func (s *apiServer) goesAway(one, two *plane, cc *grpc.ClientConn, proxy string) {
	t := s.t
	s.down()
	for _, p := range []*plane{one, two} {
		eventually(t, "notes", func() bool { ok, body := p.ready(); return ok && strings.Contains(body, "Pod are as of") })
		_, metrics := get(t, "http://"+p.cp.listeners.metrics.Addr().String()+"/metrics")
		if !strings.Contains(metrics, `warren_kube_up{kind="Pod"} 0`) {
			t.Error("metrics say that the API server is there")
		}
	}
	before, _ := two.cp.feed.Read()
	if len(before.Pods) != 3 {
		t.Errorf("%d pods are left", len(before.Pods))
	}
	s.up()
	late := podOn("n1", "app", "late", "late", "10.0.0.9")
	s.pod(late)
	eventually(t, "news", func() bool {
		now, _ := two.cp.feed.Read()
		return slices.ContainsFunc(now.Pods, func(p *corev1.Pod) bool { return p.Name == "late" })
	})
	eventually(t, "no notes", func() bool { _, body := two.ready(); return !strings.Contains(body, "as of") })
	if _, err := sign(t, cc, two.as(proxy), "spiffe://cluster.local/ns/app/sa/web"); err != nil {
		t.Error(err)
	}
}

// An API server that takes connections and never answers is told of like one that is gone.
func TestHungAPIServer(t *testing.T) {
	s := startAPIServer(t)
	s.mesh()
	p := s.controlPlane()
	eventually(t, "readiness", func() bool { ok, _ := p.ready(); return ok })
	if err := s.server.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	noticed := func() bool { ok, body := p.ready(); return ok && strings.Contains(body, "Pod are as of") }
	for range 3 { // client-go takes 45 s to find out that nobody is there, and asks again with patience
		if end := time.Now().Add(within); waitUntil(end, noticed) {
			break
		}
	}
	if !noticed() {
		t.Fatal("nobody noticed")
	}
	if err := s.server.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.pod(podOn("n1", "app", "late", "late", "10.0.0.9"))
	eventually(t, "news", func() bool {
		now, _ := p.cp.feed.Read()
		return len(now.Pods) == 4
	})
	eventually(t, "no notes", func() bool { _, body := p.ready(); return !strings.Contains(body, "as of") })
}

func waitUntil(end time.Time, ok func() bool) bool {
	for !ok() {
		if time.Now().After(end) {
			return false
		}
		time.Sleep(100 * time.Millisecond)
	}
	return true
}

// A real API server takes what is written into the status of Services and ServiceEntries
// with the rights that there are; two replicas write no address twice.
func TestRealStatus(t *testing.T) {
	s := startAPIServer(t)
	s.mesh()
	s.defineIstio()
	one, two := s.controlPlane(), s.controlPlane()
	for _, p := range []*plane{one, two} {
		eventually(t, "readiness", func() bool { ok, _ := p.ready(); return ok })
	}
	seen := map[string]string{}
	const n = 30
	for i := range n {
		e := serviceEntry(fmt.Sprintf("e%d", i), fmt.Sprintf("h%d.example", i))
		e.SetUID("")
		e.SetGeneration(0)
		eventually(t, "a definition", func() bool {
			_, err := s.dynamic.Resource(entryGVR).Namespace("app").Create(t.Context(), e, metav1.CreateOptions{})
			return err == nil || apierrors.IsAlreadyExists(err)
		})
	}
	given := func(name string) (out []string) {
		o, err := s.dynamic.Resource(entryGVR).Namespace("app").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		list, _, _ := unstructured.NestedSlice(o.Object, "status", "addresses")
		for _, a := range list {
			out = append(out, fmt.Sprint(a.(map[string]any)["value"]))
		}
		return out
	}
	for i := range n {
		name := fmt.Sprintf("e%d", i)
		eventually(t, "addresses of "+name, func() bool { return len(given(name)) == 2 })
		for _, a := range given(name) {
			if other := seen[a]; other != "" {
				t.Errorf("%s is %s's and %s's", a, other, name)
			}
			seen[a] = name
		}
	}
	served := func(p *plane) bool {
		_, r, _ := p.cp.model.policies()
		with := 0
		for _, svc := range r.Services {
			if len(svc.VIPs) == 2 && strings.HasSuffix(svc.Hostname, ".example") {
				with++
			}
		}
		return with == n
	}
	for _, p := range []*plane{one, two} {
		eventually(t, "addresses in the model", func() bool { return served(p) })
	}
	// Of the next leader they are the same, and one that is set free is taken off nobody.
	leader, other := one, two
	if two.cp.cluster.leader.leads.Load() {
		leader, other = two, one
	}
	leader.stop()
	eventually(t, "another leader", func() bool { return other.cp.cluster.leader.leads.Load() })
	if _, err := s.dynamic.Resource(entryGVR).Namespace("app").Patch(t.Context(), "e0", types.MergePatchType, []byte(`{"spec":{"hosts":["h0.example","more.example"]}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "addresses of another host", func() bool { return len(given("e0")) == 4 })
	for a, name := range seen {
		if !slices.Contains(given(name), a) {
			t.Errorf("%s lost %s", name, a)
		}
	}
	if _, err := s.kubernetes.CoreV1().Services("app").Patch(t.Context(), "web", types.MergePatchType, []byte(`{"metadata":{"labels":{"istio.io/use-waypoint":"wp"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what became of the waypoint", func() bool {
		svc, err := s.kubernetes.CoreV1().Services("app").Get(t.Context(), "web", metav1.GetOptions{})
		return err == nil && slices.ContainsFunc(svc.Status.Conditions, func(c metav1.Condition) bool {
			return c.Type == conditionBound && c.Status == "False" && c.Reason == "WaypointIsNotReady"
		})
	})
	if strings.Contains(other.log.String(), "cannot write") {
		t.Error(other.log.String())
	}
}

// Two replicas take another CA from a real API server, with the rights that there are,
// and agree all the time; one that is started while it is under way joins in.
func TestRealReplacement(t *testing.T) {
	s := startAPIServer(t)
	s.mesh()
	short := func(c *Config) { c.TTL, c.CAOverlap = 8*time.Second, 8*time.Second }
	planes := []*plane{s.controlPlane(short), s.controlPlane(short)}
	for _, p := range planes {
		eventually(t, "readiness", func() bool { ok, _ := p.ready(); return ok })
	}
	eventually(t, "root", func() bool { return s.root("app") != "" })
	old := strings.TrimSpace(s.root("app"))
	f, err := authority.Create(meshDomain, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	next := strings.TrimSpace(string(f.Cert))
	if _, err := s.kubernetes.CoreV1().Secrets(ownNS).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: pluggedSecret},
		Data: map[string][]byte{"ca-cert.pem": f.Cert, "ca-key.pem": f.Key, "root-cert.pem": f.Cert}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both roots", func() bool { return strings.Contains(s.root("app"), old) && strings.Contains(s.root("app"), next) })
	planes = append(planes, s.controlPlane(short))
	for _, p := range planes {
		eventually(t, "both roots of a replica", func() bool { return strings.Contains(p.cp.roots(), old) && strings.Contains(p.cp.roots(), next) })
	}
	for _, p := range planes {
		eventually(t, "the new root alone", func() bool { return strings.TrimSpace(p.cp.roots()) == next })
	}
	eventually(t, "the new root alone in every namespace", func() bool { return strings.TrimSpace(s.root("app")) == next })
	eventually(t, "no key of the old one", func() bool {
		secret, err := s.kubernetes.CoreV1().Secrets(ownNS).Get(t.Context(), rotationSecret, metav1.GetOptions{})
		return err == nil && len(secret.Data) == 0
	})
	if _, err := sign(t, s.dial(planes[2]), planes[2].as(s.token("ztunnel", "ztunnel-1", "istio-ca")), "spiffe://cluster.local/ns/app/sa/web"); err != nil {
		t.Error(err)
	}
	for _, p := range planes {
		if strings.Contains(p.log.String(), "forbidden") || strings.Contains(p.log.String(), "PRIVATE") {
			t.Error(p.log.String())
		}
	}
}
