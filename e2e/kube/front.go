package kube

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/warren-mesh/warren/e2e/kube/app"
)

const (
	frontAddr   = "127.0.0.1:16443"
	frontSecret = "e2e-front"
	frontFolder = "/e2e-front"
)

// Fronts stand between the agents and the API server, one on each node, and do to
// them what an API server does that is slow, busy or gone.
type Fronts struct {
	m         *Mesh
	namespace string
}

// Fronts starts them in a namespace and makes the agents go by them. What it changed
// of the agents is undone by installing the mesh anew.
func (m *Mesh) Fronts(ctx context.Context, namespace string) (*Fronts, error) {
	cert, key, err := selfSigned()
	if err != nil {
		return nil, err
	}
	kubeconfig := fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
"clusters":[{"name":"c","cluster":{"server":"https://%s","certificate-authority":"%s/tls.crt"}}],
"users":[{"name":"u","user":{"tokenFile":"/var/run/secrets/kubernetes.io/serviceaccount/token"}}]}`, frontAddr, frontFolder)
	for _, ns := range []string{namespace, SystemNamespace} {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: frontSecret}, Data: map[string][]byte{"tls.crt": cert, "tls.key": key, "kubeconfig": kubeconfig}}
		_ = m.CoreV1().Secrets(ns).Delete(ctx, frontSecret, metav1.DeleteOptions{}) // of an earlier run
		if _, err := m.CoreV1().Secrets(ns).Create(ctx, s, metav1.CreateOptions{}); err != nil {
			return nil, err
		}
	}
	f := &Fronts{m: m, namespace: namespace}
	for _, node := range m.Nodes {
		if err := f.start(ctx, node); err != nil {
			return nil, err
		}
	}
	return f, f.goBy(ctx)
}

func (f *Fronts) pod(node string) string { return "front-" + node }

func (f *Fronts) start(ctx context.Context, node string) error {
	yes := true
	_, err := f.m.Create(ctx, PodSpec{Namespace: f.namespace, Name: f.pod(node), Account: "front", Node: node, Mutate: func(p *corev1.Pod) {
		p.Spec.HostNetwork, p.Spec.AutomountServiceAccountToken = true, &yes
		p.Spec.Containers[0].Command = []string{AppPath, "front", frontAddr, frontFolder}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "front", MountPath: frontFolder}}
		p.Spec.Volumes = []corev1.Volume{{Name: "front", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: frontSecret}}}}
	}})
	if err != nil {
		return err
	}
	_, err = f.m.WaitReady(ctx, f.namespace, f.pod(node), 2*time.Minute)
	return err
}

// goBy makes the agents take the fronts for the API server.
func (f *Fronts) goBy(ctx context.Context) error {
	patch, err := json.Marshal([]map[string]any{
		{"op": "add", "path": "/spec/template/spec/volumes/-", "value": map[string]any{"name": "front", "secret": map[string]any{"secretName": frontSecret}}},
		{"op": "add", "path": "/spec/template/spec/containers/0/volumeMounts/-", "value": map[string]any{"name": "front", "mountPath": frontFolder, "readOnly": true}},
		{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--kubeconfig=" + frontFolder + "/kubeconfig"},
	})
	if err != nil {
		return err
	}
	if _, err = f.m.AppsV1().DaemonSets(SystemNamespace).Patch(ctx, AgentDaemonSet, types.JSONPatchType, patch, metav1.PatchOptions{}); err != nil {
		return err
	}
	return f.m.WaitUp(ctx, 3*time.Minute)
}

// Set tells the front of a node what to do; see app.FrontOpen and the others.
func (f *Fronts) Set(ctx context.Context, node, mode string) error {
	_, err := f.m.Exec(ctx, f.namespace, f.pod(node), "app", AppPath, "front-mode", frontAddr, mode)
	return err
}

// Stop opens the fronts and makes the agents go to the API server itself again.
func (f *Fronts) Stop(ctx context.Context) error {
	for _, node := range f.m.Nodes {
		if err := f.Set(ctx, node, app.FrontOpen); err != nil {
			return err
		}
	}
	return f.m.Install(ctx)
}

// selfSigned makes a certificate for the loopback address.
func selfSigned() (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	of := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, of, of, k.Public(), k)
	if err != nil {
		return nil, nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	var c, p bytes.Buffer
	_ = pem.Encode(&c, &pem.Block{Type: "CERTIFICATE", Bytes: der})     // a buffer takes all
	_ = pem.Encode(&p, &pem.Block{Type: "PRIVATE KEY", Bytes: private}) // and this
	return c.Bytes(), p.Bytes(), nil
}
