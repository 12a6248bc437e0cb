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
	// secretEvery is how often a Secret is compared with what is signed with. A replica that
	// is restarted because of another Secret is not to be there before it was seen.
	secretEvery = 2 * time.Second
)

// caSecret keeps the authority in a Secret.
type caSecret struct {
	client    kubernetes.Interface
	namespace string
	td        spiffeid.TrustDomain
	policy    authority.Policy
	overlap   time.Duration
	log       *slog.Logger

	mu      sync.Mutex
	loaded  authority.Files // what is or will be signed with: what was last in the Secret, and could be used
	own     bool            // it came from ownSecret
	differ  string          // why what is in the API server is something else; empty for the same
	signing authority.Files // what is signed with, and the roots that go with it
	note    string          // what there is to say of a replacement; empty for none
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
	before, err := s.readBefore(ctx)
	if err != nil {
		return nil, err
	}
	ca, used, note, err := s.choose(files, before, now)
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", s.namespace, name, err)
	}
	s.mu.Lock()
	s.loaded, s.own, s.signing, s.note = files, name == ownSecret, used, note
	s.mu.Unlock()
	s.log.Info("the CA's key is that of a Secret", "secret", s.namespace+"/"+name, "expires", ca.NotAfter().UTC().Format(time.RFC3339), "note", note)
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

// watch compares the Secret with what is signed with until ctx ends, and has use called
// with what is to be used instead.
func (s *caSecret) watch(ctx context.Context, use func(*authority.Authority)) {
	tick := time.NewTicker(secretEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if ca := s.compare(ctx, time.Now()); ca != nil {
				use(ca)
			}
		}
	}
}

// compare returns what is to be used from now on, nil for what is used already. A Secret
// that was deleted is put back, if it was ours: a replica that starts would begin another
// mesh. One with something else in it replaces what is used, step by step; see replacement.
func (s *caSecret) compare(ctx context.Context, now time.Time) *authority.Authority {
	ctx, cancel := context.WithTimeout(ctx, secretTimeout)
	defer cancel()
	files, name, err := s.read(ctx)
	s.mu.Lock()
	loaded, own, told := s.loaded, s.own, s.differ
	s.mu.Unlock()
	var ca *authority.Authority
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
	default:
		if ca, err = s.replace(ctx, files, name, now); err != nil {
			differ = fmt.Sprintf("secret %s/%s has changed, and is not used: %v", s.namespace, name, err)
		}
	}
	if differ != "" && differ != told {
		s.log.Error("this replica signs with a CA that is not the one in the API server: mend that, or put the old one back", "reason", differ)
	}
	s.mu.Lock()
	s.differ = differ
	s.mu.Unlock()
	return ca
}

// differs says why the Secret is not what is signed with.
func (s *caSecret) differs() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.differ
}

// replacing says how far the replacement of a CA is, empty for none.
func (s *caSecret) replacing() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.note
}

func digest(f authority.Files) [sha256.Size]byte {
	roots := f.Roots
	if len(bytes.TrimSpace(roots)) == 0 {
		roots = f.Cert
	}
	return sha256.Sum256(bytes.Join([][]byte{bytes.TrimSpace(f.Cert), bytes.TrimSpace(f.Key), bytes.TrimSpace(f.Chain), bytes.TrimSpace(roots)}, []byte{0}))
}
