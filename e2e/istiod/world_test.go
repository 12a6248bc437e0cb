//go:build istiod

package istiod

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// The programs, each named by a variable.
const (
	istiodBin    = "ISTIOD_BIN"
	apiServerBin = "KUBE_APISERVER_BIN"
	etcdBin      = "ETCD_BIN"
)

func program(variable string) (string, error) {
	path := os.Getenv(variable)
	if path == "" {
		return "", fmt.Errorf("%s is not set: name the program, built from source", variable)
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s: %w", variable, err)
	}
	return path, nil
}

// istiod is Istio's control plane on an API server of its own, in a mesh of onehost. The
// namespace that it runs in is the mesh's, so its ports are always the same.
type istiod struct {
	env     []string // added to its environment
	cluster string   // its ID, empty: Kubernetes
	network string   // of this cluster, if there are several
	mesh    *onehost.Mesh
	kube    kubernetes.Interface
	dyn     dynamic.Interface
	ambient map[string]bool // namespaces
}

const (
	rootNamespace = "istio-system"
	apiPort       = "6443"
	adminToken    = "admintoken"
	// Programs that share two processors with others start slowly.
	startWithin = 2 * time.Minute
)

// Start implements onehost.ControlPlane.
func (i *istiod) Start(ctx context.Context, m *onehost.Mesh) error {
	i.mesh, i.ambient = m, make(map[string]bool)
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for _, step := range []func(context.Context) error{i.startAPIServer, i.define, i.people, i.startIstiod, i.trust} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (i *istiod) file(name string) string { return filepath.Join(i.mesh.Opts.Dir, name) }

func (i *istiod) startAPIServer(ctx context.Context) error {
	etcd, err := program(etcdBin)
	if err != nil {
		return err
	}
	server, err := program(apiServerBin)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		"sa.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		"tokens": []byte(adminToken + ",admin,1,system:masters\n"),
	} {
		if err := os.WriteFile(i.file(name), text, 0o600); err != nil {
			return err
		}
	}
	if err := i.mesh.Run("etcd", etcd, nil, "--data-dir="+i.file("etcd"), "--unsafe-no-fsync"); err != nil {
		return err
	}
	err = i.mesh.Run("apiserver", server, nil, "--etcd-servers=http://127.0.0.1:2379", "--secure-port="+apiPort, "--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1", "--cert-dir="+i.file("certs"), "--service-account-issuer=https://issuer.test",
		"--service-account-key-file="+i.file("sa.key"), "--service-account-signing-key-file="+i.file("sa.key"),
		"--authorization-mode=RBAC", "--token-auth-file="+i.file("tokens"), "--service-cluster-ip-range=10.0.0.0/8,fd00:10::/64", "--endpoint-reconciler-type=none",
		// There is no controller to make a ServiceAccount for every namespace.
		"--disable-admission-plugins=ServiceAccount")
	if err != nil {
		return err
	}
	config := &rest.Config{
		Host: "https://127.0.0.1:" + apiPort, BearerToken: adminToken, TLSClientConfig: rest.TLSClientConfig{Insecure: true}, QPS: 1000, Burst: 1000,
		Dial: func(ctx context.Context, _, addr string) (net.Conn, error) { return i.mesh.DialFabric(ctx, addr) },
	}
	if i.kube, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if i.dyn, err = dynamic.NewForConfig(config); err != nil {
		return err
	}
	return i.until(ctx, "apiserver", "it is ready", func() error {
		_, err := i.kube.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// kinds are what scenarios are made of. A definition takes any content: what istiod
// makes of it is what is tested.
var kinds = map[string]struct {
	schema.GroupVersionResource
	defined, cluster bool
	status           bool // is written by a second call
}{
	"Namespace":           {GroupVersionResource: schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, cluster: true},
	"Secret":              {GroupVersionResource: schema.GroupVersionResource{Version: "v1", Resource: "secrets"}},
	"Node":                {GroupVersionResource: schema.GroupVersionResource{Version: "v1", Resource: "nodes"}, cluster: true},
	"Pod":                 {GroupVersionResource: schema.GroupVersionResource{Version: "v1", Resource: "pods"}, status: true},
	"Service":             {GroupVersionResource: schema.GroupVersionResource{Version: "v1", Resource: "services"}},
	"ServiceAccount":      {GroupVersionResource: schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}},
	"EndpointSlice":       {GroupVersionResource: schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}},
	"AuthorizationPolicy": {GroupVersionResource: schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}, defined: true},
	"PeerAuthentication":  {GroupVersionResource: schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "peerauthentications"}, defined: true},
	"ServiceEntry":        {GroupVersionResource: schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}, defined: true, status: true},
	"WorkloadEntry":       {GroupVersionResource: schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"}, defined: true, status: true},
	"Gateway":             {GroupVersionResource: schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}, defined: true, status: true},
	"GatewayClass":        {GroupVersionResource: schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}, defined: true, cluster: true},
}

// define makes the kinds that are Istio's and the Gateway API's.
func (i *istiod) define(ctx context.Context) error {
	crds := i.dyn.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	for kind, k := range kinds {
		if !k.defined {
			continue
		}
		scope := "Namespaced"
		if k.cluster {
			scope = "Cluster"
		}
		annotations := map[string]any{}
		if k.Group == "gateway.networking.k8s.io" { // or the API server would not take the group
			annotations = map[string]any{"api-approved.kubernetes.io": "unapproved, test-only", "gateway.networking.k8s.io/bundle-version": "v1.6.0"}
		}
		_, err := crds.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
			"metadata": map[string]any{"name": k.Resource + "." + k.Group, "annotations": annotations},
			"spec": map[string]any{
				"group": k.Group, "scope": scope,
				"names": map[string]any{"kind": kind, "plural": k.Resource, "singular": strings.ToLower(kind), "listKind": kind + "List"},
				"versions": []any{map[string]any{
					"name": k.Version, "served": true, "storage": true, "subresources": map[string]any{"status": map[string]any{}},
					"schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
				}},
			},
		}}, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("define %s: %w", kind, err)
		}
	}
	for kind, k := range kinds {
		err := i.until(ctx, "apiserver", kind+" is served", func() error {
			_, err := i.dyn.Resource(k.GroupVersionResource).List(ctx, metav1.ListOptions{Limit: 1})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// people makes the nodes and, on each, the pod that its proxy's token is bound to.
func (i *istiod) people(ctx context.Context) error {
	labels := ""
	if i.network != "" {
		labels = networkLabel + ": " + i.network
	}
	docs := []string{
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: " + rootNamespace + ", labels: {" + labels + "}}\n",
		"apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: ztunnel, namespace: " + rootNamespace + "}\n",
	}
	for _, n := range i.mesh.Nodes {
		docs = append(docs, "apiVersion: v1\nkind: Node\nmetadata: {name: "+n.Name+"}\n", fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: proxy-%s, namespace: %s, labels: {app: ztunnel, istio.io/dataplane-mode: none}}
spec: {nodeName: %[1]s, serviceAccountName: ztunnel, containers: [{name: istio-proxy, image: proxy}]}
`, n.Name, rootNamespace))
	}
	for _, d := range docs {
		if err := i.Put([]byte(d)); err != nil {
			return err
		}
	}
	for _, n := range i.mesh.Nodes {
		token, err := i.token(ctx, "ztunnel", "proxy-"+n.Name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(n.TokenFile(), []byte(token+"\n"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (i *istiod) token(ctx context.Context, account, pod string) (string, error) {
	p, err := i.kube.CoreV1().Pods(rootNamespace).Get(ctx, pod, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	r, err := i.kube.CoreV1().ServiceAccounts(rootNamespace).CreateToken(ctx, account, &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
		Audiences: []string{"istio-ca"}, BoundObjectRef: &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID},
	}}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("token of %s: %w", pod, err)
	}
	return r.Status.Token, nil
}

func (i *istiod) clusterID() string { return cmp.Or(i.cluster, "Kubernetes") }

// meshConfig has what scenarios need. A service's scope is the mesh's to say: the label
// istio.io/global means nothing by itself.
const meshConfig = `serviceEntryVisibility:
  policies: [{visibility: NAMESPACE, matchingRules: [{namespaceSelector: {matchLabels: {visibility: private}}}]}]
serviceScopeConfigs: [{servicesSelector: {matchLabels: {istio.io/global: "true"}}, scope: GLOBAL}]
`

func (i *istiod) startIstiod(ctx context.Context) error {
	bin, err := program(istiodBin)
	if err != nil {
		return err
	}
	kubeconfig := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:%s", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: %s}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, apiPort, adminToken)
	if err := os.WriteFile(i.file("kubeconfig"), []byte(kubeconfig), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(i.file("mesh-config"), []byte(meshConfig), 0o600); err != nil {
		return err
	}
	env := append([]string{
		"PILOT_ENABLE_AMBIENT=true", "CA_TRUSTED_NODE_ACCOUNTS=" + rootNamespace + "/ztunnel", "POD_NAMESPACE=" + rootNamespace,
		"POD_NAME=istiod-local", "CLUSTER_ID=" + i.clusterID(), "ENABLE_LEADER_ELECTION=false", "INJECT_ENABLED=false", "VALIDATION_WEBHOOK_CONFIG_NAME=",
	}, i.env...)
	if i.network != "" {
		env = append(env, "AMBIENT_ENABLE_MULTI_NETWORK=true")
	}
	err = i.mesh.Run("istiod", bin, env, "discovery", "--kubeconfig="+i.file("kubeconfig"), "--grpcAddr=127.0.0.1:15010",
		"--secureGRPCAddr="+net.JoinHostPort("", fmt.Sprint(i.mesh.ControlPlaneAddr().Port())), "--httpAddr=127.0.0.1:8080", "--httpsAddr=127.0.0.1:15017",
		"--monitoringAddr=127.0.0.1:15014", "--ctrlz_port=9876", "--meshConfig="+i.file("mesh-config"))
	if err != nil {
		return err
	}
	return i.until(ctx, "istiod", "it serves", func() error {
		c, err := i.mesh.DialFabric(ctx, "127.0.0.1:15012")
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// trust takes the CA's root to where the proxies read it.
func (i *istiod) trust(ctx context.Context) error {
	var root string
	err := i.until(ctx, "istiod", "it has written its root", func() error {
		cm, err := i.kube.CoreV1().ConfigMaps(rootNamespace).Get(ctx, "istio-ca-root-cert", metav1.GetOptions{})
		if err != nil {
			return err
		}
		root = cm.Data["root-cert.pem"]
		if root == "" {
			return errors.New("no root-cert.pem in istio-ca-root-cert")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(i.mesh.RootCert()), 0o755); err != nil {
		return err
	}
	return os.WriteFile(i.mesh.RootCert(), []byte(root), 0o644)
}

// until waits for ok; what it waited for is shown with the end of a program's log.
func (i *istiod) until(ctx context.Context, name, what string, ok func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(i.mesh.Log(name))
			return fmt.Errorf("%s: waiting until %s: %w\n%s", name, what, err, log[max(0, len(log)-4096):])
		case <-tick.C:
		}
	}
}

// Put implements onehost.ControlPlane. Pods that have an address and belong to the mesh
// are marked as a node agent does that speaks to an API server.
func (i *istiod) Put(doc []byte) error {
	if i.dyn == nil {
		return errors.New("the API server is not up yet")
	}
	obj := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(doc, &obj.Object); err != nil {
		return err
	}
	k, known := kinds[obj.GetKind()]
	if !known {
		return fmt.Errorf("kind %q: not one of the scenarios'", obj.GetKind())
	}
	i.mark(obj)
	var to dynamic.ResourceInterface = i.dyn.Resource(k.GroupVersionResource)
	if !k.cluster {
		to = i.dyn.Resource(k.GroupVersionResource).Namespace(obj.GetNamespace())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	stored, err := store(ctx, to, obj)
	if err != nil {
		return fmt.Errorf("%s %s/%s: %w", obj.GetKind(), obj.GetNamespace(), obj.GetName(), err)
	}
	status, has := obj.Object["status"]
	if !has || !k.status {
		return nil
	}
	for err == nil {
		stored.Object["status"] = status
		if _, err = to.UpdateStatus(ctx, stored, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			break
		}
		stored, err = to.Get(ctx, obj.GetName(), metav1.GetOptions{}) // istiod writes into some of them
	}
	if err != nil {
		return fmt.Errorf("status of %s %s/%s: %w", obj.GetKind(), obj.GetNamespace(), obj.GetName(), err)
	}
	return nil
}

// store creates an object, or changes what may be changed of it.
func store(ctx context.Context, to dynamic.ResourceInterface, obj *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	for {
		old, err := to.Get(ctx, obj.GetName(), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			fresh := obj.DeepCopy()
			unstructured.RemoveNestedField(fresh.Object, "metadata", "uid")
			return to.Create(ctx, fresh, metav1.CreateOptions{})
		case err != nil:
			return nil, err
		}
		next := obj.DeepCopy()
		if obj.GetKind() == "Pod" { // whose spec is final
			next = old.DeepCopy()
			next.SetLabels(obj.GetLabels())
			next.SetAnnotations(obj.GetAnnotations())
		}
		next.SetResourceVersion(old.GetResourceVersion())
		next.SetUID(old.GetUID())
		if next, err = to.Update(ctx, next, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			return next, err
		}
	}
}

func (i *istiod) mark(obj *unstructured.Unstructured) {
	const mode = "istio.io/dataplane-mode"
	switch obj.GetKind() {
	case "Namespace":
		i.ambient[obj.GetName()] = obj.GetLabels()[mode] == "ambient"
	case "Pod":
		in := i.ambient[obj.GetNamespace()] && obj.GetLabels()[mode] != "none" || obj.GetLabels()[mode] == "ambient"
		if ip, _, _ := unstructured.NestedString(obj.Object, "status", "podIP"); in && ip != "" {
			a := obj.GetAnnotations()
			if a == nil {
				a = map[string]string{}
			}
			a["ambient.istio.io/redirection"] = "enabled"
			obj.SetAnnotations(a)
		}
	}
}

// Gone implements onehost.ControlPlane.
func (i *istiod) Gone(kind, namespace, name string) error {
	k := kinds[kind]
	var from dynamic.ResourceInterface = i.dyn.Resource(k.GroupVersionResource)
	if !k.cluster {
		from = i.dyn.Resource(k.GroupVersionResource).Namespace(namespace)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	now := int64(0)
	err := from.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
