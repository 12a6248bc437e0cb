package controlplane

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/warren-mesh/warren/ca/authority"
)

// The Secrets of an authority, as istiod has them: the one that somebody put there, and
// the one that it makes for itself. All replicas read the same, and so does an istiod in
// the same namespace.
const (
	pluggedSecret = "cacerts"
	ownSecret     = "istio-ca-secret"
	ownSecretType = "istio.io/ca-root"
)

const (
	secretTimeout = 15 * time.Second
	// secretEvery is how often a Secret is compared with what is signed with.
	secretEvery = time.Minute
)

// caSecret keeps the authority in a Secret.
type caSecret struct {
	client    kubernetes.Interface
	namespace string
	td        spiffeid.TrustDomain
	policy    authority.Policy
	log       *slog.Logger

	mu     sync.Mutex
	loaded authority.Files // what is signed with
	own    bool            // it came from ownSecret
	differ string          // why what is in the API server is something else; empty for the same
}

// load reads the authority, or makes one where there is none. Of several replicas that
// find none at the same time the first makes it, and all others read that.
func (s *caSecret) load(ctx context.Context, now time.Time) (*authority.Authority, error) {
	ctx, cancel := context.WithTimeout(ctx, secretTimeout)
	defer cancel()
	files, name, err := s.read(ctx)
	if err == nil && name == "" {
		if err = s.create(ctx, now); err == nil {
			files, name, err = s.read(ctx) // what is there counts, whoever wrote it
		}
	}
	if err != nil {
		return nil, err
	}
	if name == "" {
		return nil, fmt.Errorf("secret %s/%s: gone again after it was made", s.namespace, ownSecret)
	}
	ca, err := authority.Load(files, s.policy, now)
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", s.namespace, name, err)
	}
	s.mu.Lock()
	s.loaded, s.own = files, name == ownSecret
	s.mu.Unlock()
	s.log.Info("the CA's key is that of a Secret", "secret", s.namespace+"/"+name, "expires", ca.NotAfter().UTC().Format(time.RFC3339))
	return ca, nil
}

// read returns what is in the API server, and an empty name for nothing. An error with a
// name is about what is in that Secret, one without about reaching it.
func (s *caSecret) read(ctx context.Context) (files authority.Files, name string, err error) {
	for _, name := range []string{pluggedSecret, ownSecret} {
		secret, err := s.client.CoreV1().Secrets(s.namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return files, "", fmt.Errorf("secret %s/%s: %w", s.namespace, name, err)
		}
		files, err := filesOf(secret)
		if err != nil {
			return files, name, fmt.Errorf("secret %s/%s: %w", s.namespace, name, err)
		}
		return files, name, nil
	}
	return files, "", nil
}

// filesOf finds an authority's parts under Istio's names, or under those of a TLS Secret,
// whose certificate is followed by the ones above it.
func filesOf(secret *corev1.Secret) (authority.Files, error) {
	d := secret.Data
	if len(d["ca-cert.pem"]) > 0 || len(d["ca-key.pem"]) > 0 {
		return authority.Files{Cert: d["ca-cert.pem"], Key: d["ca-key.pem"], Chain: d["cert-chain.pem"], Roots: d["root-cert.pem"]}, nil
	}
	if len(d[corev1.TLSCertKey]) == 0 || len(d[corev1.TLSPrivateKeyKey]) == 0 {
		return authority.Files{}, errors.New("it holds neither ca-cert.pem and ca-key.pem nor tls.crt and tls.key")
	}
	block, above := pem.Decode(d[corev1.TLSCertKey])
	if block == nil {
		return authority.Files{}, errors.New("tls.crt is not PEM")
	}
	return authority.Files{Cert: pem.EncodeToMemory(block), Key: d[corev1.TLSPrivateKeyKey], Chain: above, Roots: d["ca.crt"]}, nil
}

func (s *caSecret) create(ctx context.Context, now time.Time) error {
	made, err := authority.Create(s.td, now)
	if err != nil {
		return err
	}
	return s.write(ctx, made)
}

// write makes the Secret unless there is one.
func (s *caSecret) write(ctx context.Context, files authority.Files) error {
	roots := files.Roots
	if len(roots) == 0 {
		roots = files.Cert
	}
	_, err := s.client.CoreV1().Secrets(s.namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: ownSecret, Namespace: s.namespace, Labels: managed()},
		Type:       ownSecretType,
		Data:       map[string][]byte{"ca-cert.pem": files.Cert, "ca-key.pem": files.Key, "root-cert.pem": roots, "cert-chain.pem": files.Chain},
	}, metav1.CreateOptions{FieldManager: fieldManager})
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil
	case err != nil:
		return fmt.Errorf("make secret %s/%s: %w", s.namespace, ownSecret, err)
	}
	s.log.Info("secret made", "secret", s.namespace+"/"+ownSecret)
	return nil
}

// watch compares the Secret with what is signed with until ctx ends. One that was
// deleted is put back, if it was ours: a replica that starts would begin another mesh.
// One that was changed is not taken before the next start, and said to be another.
func (s *caSecret) watch(ctx context.Context) {
	tick := time.NewTicker(secretEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.compare(ctx)
		}
	}
}

func (s *caSecret) compare(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, secretTimeout)
	defer cancel()
	files, name, err := s.read(ctx)
	s.mu.Lock()
	loaded, own, told := s.loaded, s.own, s.differ
	s.mu.Unlock()
	differ := ""
	switch {
	case err != nil && name == "":
		differ = told // nothing was found out about it
	case err != nil:
		differ = err.Error()
	case name == "" && own:
		s.log.Warn("the CA's secret is gone and is put back: to begin a new mesh, stop all replicas first", "secret", s.namespace+"/"+ownSecret)
		if err := s.write(ctx, loaded); err != nil {
			differ = err.Error()
		}
	case name == "":
		differ = fmt.Sprintf("secret %s/%s is gone", s.namespace, pluggedSecret)
	case digest(files) != digest(loaded):
		differ = fmt.Sprintf("secret %s/%s has changed", s.namespace, name)
	}
	if differ != "" && differ != told {
		s.log.Error("this replica signs with a CA that is not the one in the API server: restart it to take that, or put the old one back", "reason", differ)
	}
	s.mu.Lock()
	s.differ = differ
	s.mu.Unlock()
}

// differs says why the Secret is not what is signed with.
func (s *caSecret) differs() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.differ
}

func digest(f authority.Files) [sha256.Size]byte {
	roots := f.Roots
	if len(bytes.TrimSpace(roots)) == 0 {
		roots = f.Cert
	}
	return sha256.Sum256(bytes.Join([][]byte{bytes.TrimSpace(f.Cert), bytes.TrimSpace(f.Key), bytes.TrimSpace(f.Chain), bytes.TrimSpace(roots)}, []byte{0}))
}
