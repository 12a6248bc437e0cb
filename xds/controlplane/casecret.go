package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
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
	// rotationSecret holds the record of a rotation, with the key of the authority that
	// does not sign.
	rotationSecret = "warren-ca-rotation"
	rotationKey    = "record.json"
	// issuedMap holds what each replica has signed that is valid: numbers, no secrets.
	issuedMap = "warren-ca-issued"
)

// versionPrefix makes the version of a Secret that is there other than empty.
const versionPrefix = "v"

// caSecret keeps the authority in Secrets: a rotation.Store.
type caSecret struct {
	client    kubernetes.Interface
	namespace string
	td        spiffeid.TrustDomain
	log       *slog.Logger
}

func (s *caSecret) called(name string) string { return "secret " + s.namespace + "/" + name }

// Read implements rotation.Store.
func (s *caSecret) Read(ctx context.Context) (k rotation.Kept, err error) {
	secrets := s.client.CoreV1().Secrets(s.namespace)
	switch record, err := secrets.Get(ctx, rotationSecret, metav1.GetOptions{}); {
	case apierrors.IsNotFound(err):
	case err != nil:
		return k, fmt.Errorf("%s: %w", s.called(rotationSecret), err)
	default:
		k.Version = versionPrefix + record.ResourceVersion
		if k.Record, err = rotation.Decode(record.Data[rotationKey]); err != nil {
			k.Name = s.called(rotationSecret)
			return k, fmt.Errorf("%s: %w; if what it held cannot be put back, remove it, and the installed CA is used alone", k.Name, err)
		}
	}
	for _, name := range []string{pluggedSecret, ownSecret} {
		secret, err := secrets.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return k, fmt.Errorf("%s: %w", s.called(name), err)
		}
		k.Name, k.Plugged = s.called(name), name == pluggedSecret
		if k.Files, err = filesOf(secret); err != nil {
			return k, fmt.Errorf("%s: %w", k.Name, err)
		}
		return k, nil
	}
	return k, nil
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
	return authority.FromTLS(d[corev1.TLSCertKey], d[corev1.TLSPrivateKeyKey], d[corev1.ServiceAccountRootCAKey])
}

// Create implements rotation.Store.
func (s *caSecret) Create(ctx context.Context, now time.Time) error {
	made, err := authority.Create(s.td, now)
	if err != nil {
		return err
	}
	return s.PutBack(ctx, made)
}

// PutBack implements rotation.Store: it makes the Secret unless there is one.
func (s *caSecret) PutBack(ctx context.Context, files authority.Files) error {
	_, err := s.client.CoreV1().Secrets(s.namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: ownSecret, Namespace: s.namespace, Labels: managed()},
		Type:       ownSecretType,
		Data:       secretData(files),
	}, metav1.CreateOptions{FieldManager: fieldManager})
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil
	case err != nil:
		return fmt.Errorf("make %s: %w", s.called(ownSecret), err)
	}
	s.log.Info("secret made", "secret", s.namespace+"/"+ownSecret)
	return nil
}

func secretData(f authority.Files) map[string][]byte {
	if len(f.Roots) == 0 {
		f.Roots = f.Cert
	}
	return map[string][]byte{"ca-cert.pem": f.Cert, "ca-key.pem": f.Key, "root-cert.pem": f.Roots, "cert-chain.pem": f.Chain}
}

// Install implements rotation.Store.
func (s *caSecret) Install(ctx context.Context, f authority.Files) error {
	secrets := s.client.CoreV1().Secrets(s.namespace)
	secret, err := secrets.Get(ctx, ownSecret, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("%s: %w", s.called(ownSecret), err)
	}
	secret.Data = secretData(f)
	if _, err := secrets.Update(ctx, secret, metav1.UpdateOptions{FieldManager: fieldManager}); err != nil {
		return fmt.Errorf("write %s: %w", s.called(ownSecret), changed(err))
	}
	return nil
}

// changed is rotation's error for a write that another was before.
func changed(err error) error {
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return rotation.ErrChanged
	}
	return err
}

// WriteRecord implements rotation.Store.
func (s *caSecret) WriteRecord(ctx context.Context, k rotation.Kept, r rotation.Record) error {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: rotationSecret, Namespace: s.namespace, Labels: managed(), ResourceVersion: strings.TrimPrefix(k.Version, versionPrefix)}, Type: ownSecretType}
	if !r.Empty() {
		text, err := r.Encode()
		if err != nil {
			return err
		}
		secret.Data = map[string][]byte{rotationKey: text}
	}
	secrets := s.client.CoreV1().Secrets(s.namespace)
	var err error
	if k.Version != "" {
		_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{FieldManager: fieldManager})
	} else {
		_, err = secrets.Create(ctx, secret, metav1.CreateOptions{FieldManager: fieldManager})
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", s.called(rotationSecret), changed(err))
	}
	return nil
}

// Publish implements rotation.Store. Whoever leads writes the ConfigMaps.
func (s *caSecret) Publish(context.Context, []byte) error { return nil }

// Replicas implements rotation.Store.
func (s *caSecret) Replicas(ctx context.Context) ([]rotation.Replica, error) {
	m, err := s.client.CoreV1().ConfigMaps(s.namespace).Get(ctx, issuedMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configmap %s/%s: %w", s.namespace, issuedMap, err)
	}
	var all []rotation.Replica
	for name, text := range m.Data {
		var r rotation.Replica
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return nil, fmt.Errorf("configmap %s/%s: %s: %w; remove that entry only if no certificate can be valid that this replica signed", s.namespace, issuedMap, name, err)
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b rotation.Replica) int { return a.At.Compare(b.At) })
	return all, nil
}

// WriteReplica implements rotation.Store. Each replica has an entry of its own.
func (s *caSecret) WriteReplica(ctx context.Context, r rotation.Replica, remove []string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	data := map[string]any{r.Name: string(text)}
	for _, name := range remove {
		data[name] = nil
	}
	patch, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return err
	}
	maps := s.client.CoreV1().ConfigMaps(s.namespace)
	_, err = maps.Patch(ctx, issuedMap, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if apierrors.IsNotFound(err) {
		_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: issuedMap, Namespace: s.namespace, Labels: managed()}, Data: map[string]string{r.Name: string(text)}},
			metav1.CreateOptions{FieldManager: fieldManager})
	}
	if err != nil {
		return fmt.Errorf("configmap %s/%s: %w", s.namespace, issuedMap, err)
	}
	return nil
}
