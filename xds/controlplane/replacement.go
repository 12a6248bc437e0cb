package controlplane

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/mtls"
)

// A CA whose Secret gets another one in it is replaced in three steps, since a proxy
// learns of a root when it renews a certificate, and not before:
//
//   - the old one signs, and both roots are given to everybody, for as long as a
//     certificate lives (overlap): then everybody trusts both;
//   - the new one signs, and both roots are still given, for as long again: then nobody
//     has a certificate of the old one;
//   - the new root is given alone.
//
// What of this is under way is in a Secret, so that all replicas, and those that start
// meanwhile, are at the same step. Where everybody trusts the new one's roots already,
// as with another intermediate certificate, the first step is left out; and where the
// certificate is the same, and only the list of roots another, it is taken as it is.

// beforeSecret holds the CA that is being replaced.
const beforeSecret = "warren-ca-before"

// maxRoots bounds the roots of one authority.
const maxRoots = 16

// The entries of it beside the authority's.
const (
	beforeSince = "since"       // when the replacement began
	beforeNext  = "replaced-by" // digest of what replaces it
)

// replacement is one that is under way; the zero value is none.
type replacement struct {
	old   authority.Files // with the roots that were given when it began
	next  string          // digest, as beforeNext
	since time.Time
	there bool   // there is a Secret
	at    string // its version
}

func digestText(f authority.Files) string {
	d := digest(f)
	return hex.EncodeToString(d[:])
}

func (s *caSecret) readBefore(ctx context.Context) (replacement, error) {
	secret, err := s.client.CoreV1().Secrets(s.namespace).Get(ctx, beforeSecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return replacement{}, nil
	}
	if err != nil {
		return replacement{}, fmt.Errorf("secret %s/%s: %w", s.namespace, beforeSecret, err)
	}
	r := replacement{there: true, at: secret.ResourceVersion}
	if len(secret.Data[beforeNext]) == 0 {
		return r, nil
	}
	since, err := time.Parse(time.RFC3339, string(secret.Data[beforeSince]))
	files, wrong := filesOf(secret)
	if err != nil || wrong != nil {
		s.log.Error("it is not known which CA was before the one that is in use: only that one is trusted", "secret", s.namespace+"/"+beforeSecret, "err", err, "files", wrong)
		return r, nil
	}
	r.old, r.next, r.since = files, string(secret.Data[beforeNext]), since
	return r, nil
}

// writeBefore puts down a replacement, or that there is none.
func (s *caSecret) writeBefore(ctx context.Context, r replacement) error {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: beforeSecret, Namespace: s.namespace, Labels: managed(), ResourceVersion: r.at}, Type: ownSecretType}
	if r.next != "" {
		secret.Data = map[string][]byte{
			"ca-cert.pem": r.old.Cert, "ca-key.pem": r.old.Key, "cert-chain.pem": r.old.Chain, "root-cert.pem": r.old.Roots,
			beforeSince: []byte(r.since.UTC().Format(time.RFC3339)), beforeNext: []byte(r.next),
		}
	}
	secrets := s.client.CoreV1().Secrets(s.namespace)
	var err error
	if r.there {
		_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{FieldManager: fieldManager})
	} else {
		_, err = secrets.Create(ctx, secret, metav1.CreateOptions{FieldManager: fieldManager})
	}
	if err != nil {
		return fmt.Errorf("write secret %s/%s: %w", s.namespace, beforeSecret, err)
	}
	return nil
}

// replace takes what is in the Secret. It returns nil when what is used stays. Of several
// replicas that see the change at the same time one says when it began.
func (s *caSecret) replace(ctx context.Context, files authority.Files, name string, now time.Time) (*authority.Authority, error) {
	before, err := s.readBefore(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	signing, loaded := s.signing, s.loaded
	s.mu.Unlock()
	if _, err := authority.Load(files, s.policy, now); err != nil {
		return nil, err
	}
	switch next := digestText(files); {
	case before.next == next: // under way
	case bytes.Equal(bytes.TrimSpace(files.Cert), bytes.TrimSpace(signing.Cert)):
		if before.next != "" { // what was to come does not
			before.next, before.old = "", authority.Files{}
			if err := s.writeBefore(ctx, before); err != nil {
				return nil, err
			}
		}
	default:
		before.old, before.next, before.since = signing, next, now
		if err := s.writeBefore(ctx, before); err != nil {
			if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
				return nil, nil // another replica has, and it is read the next time
			}
			return nil, err
		}
	}
	ca, used, note, err := s.choose(files, before, now)
	if err != nil {
		return nil, err
	}
	if note == "" && before.next != "" {
		s.finish(ctx, before)
	}
	s.mu.Lock()
	s.loaded, s.own, s.signing, s.note = files, name == ownSecret, used, note
	s.mu.Unlock()
	if digest(used) == digest(signing) {
		return nil, nil
	}
	s.log.Warn("another CA is in the Secret, or comes into use", "secret", s.namespace+"/"+name, "new", digest(files) != digest(loaded), "note", note, "expires", ca.NotAfter().UTC().Format(time.RFC3339))
	return ca, nil
}

// finish forgets the old CA's key. If that fails it is tried again: the replacement is
// then still there, and over.
func (s *caSecret) finish(ctx context.Context, before replacement) {
	before.next, before.old = "", authority.Files{}
	if err := s.writeBefore(ctx, before); err != nil && !apierrors.IsConflict(err) {
		s.log.Error("the key of the CA that was replaced is still there", "err", err)
	}
}

// choose says what is used at a time, given what is in the Secret and what was before:
// the authority, its parts, and what there is to say of a replacement that is under way.
func (s *caSecret) choose(files authority.Files, before replacement, now time.Time) (*authority.Authority, authority.Files, string, error) {
	if before.next != digestText(files) {
		ca, err := authority.Load(files, s.policy, now)
		return ca, files, "", err
	}
	both, known, err := union(before.old, files)
	if err != nil {
		return nil, files, "", err
	}
	takes := before.since
	if !known {
		takes = takes.Add(s.overlap)
	}
	ends := takes.Add(s.overlap)
	old, next := before.old, files
	old.Roots, next.Roots = both, both
	if now.Before(takes) {
		if ca, err := authority.Load(old, s.policy, now); err == nil {
			return ca, old, fmt.Sprintf("the CA is being replaced: the old one signs until %s, both are trusted", takes.UTC().Format(time.RFC3339)), nil
		}
		// It has expired, or is no good for another reason: the new one must.
	}
	if now.Before(ends) {
		ca, err := authority.Load(next, s.policy, now)
		return ca, next, fmt.Sprintf("the CA was replaced: the old one is trusted until %s", ends.UTC().Format(time.RFC3339)), err
	}
	ca, err := authority.Load(files, s.policy, now)
	return ca, files, "", err
}

// union returns the roots of two authorities together, and whether the first has all of
// the second's.
func union(old, next authority.Files) (both []byte, known bool, err error) {
	known = true
	seen := make(map[string]bool)
	for _, f := range []authority.Files{old, next} {
		text := f.Roots
		if len(bytes.TrimSpace(text)) == 0 {
			text = f.Cert
		}
		certs, err := mtls.ParsePEM(text, maxRoots)
		if err != nil {
			return nil, false, fmt.Errorf("roots: %w", err)
		}
		before := len(seen)
		for _, c := range certs {
			if !seen[string(c.Raw)] {
				seen[string(c.Raw)] = true
				both = append(both, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
			}
		}
		known = before == 0 || len(seen) == before
	}
	return both, known, nil
}
