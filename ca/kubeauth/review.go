package kubeauth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	authv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What the API server says of a token that is bound to a pod.
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"

	accountsGroup  = "system:serviceaccounts"
	accountsPrefix = "system:serviceaccount:"
)

// review asks the API server about a token, once for all who come with it meanwhile. The review has a time limit of
// its own, so that the first caller may go away without taking the answer from the others.
func (a *Authenticator) review(ctx context.Context, token string, sum digest, c claims) (Caller, error) {
	peer := from(ctx)
	done := a.flights.DoChan(string(sum[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), a.cfg.Timeout)
		defer cancel()
		if err := a.work.begin(ctx, peer); err != nil {
			return nil, &unavailable{err: err}
		}
		defer a.work.end(peer)
		caller, err := a.ask(ctx, token)
		now := time.Now()
		switch u := (*unavailable)(nil); {
		case err == nil:
			a.good.put(sum, caller, now, c.limit(now, keepGood))
		case !errors.As(err, &u):
			a.bad.put(sum, err, now, now.Add(keepBad))
		}
		return caller, err
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return Caller{}, r.Err
		}
		return r.Val.(Caller), nil
	case <-ctx.Done():
		return Caller{}, &unavailable{err: fmt.Errorf("the caller did not wait for the review of its token: %w", ctx.Err())}
	}
}

func (a *Authenticator) ask(ctx context.Context, token string) (Caller, error) {
	request := &authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{a.cfg.Audience}}}
	answer, err := a.cfg.Client.AuthenticationV1().TokenReviews().Create(ctx, request, metav1.CreateOptions{})
	if err == nil {
		return a.read(&answer.Status)
	}
	if apierrors.IsForbidden(err) {
		err = fmt.Errorf("allow the control plane's service account to create tokenreviews.authentication.k8s.io: %w", err)
	}
	return Caller{}, &unavailable{err: fmt.Errorf("review of a token: %w", err)}
}

// read makes a caller of the API server's answer.
func (a *Authenticator) read(s *authv1.TokenReviewStatus) (Caller, error) {
	if !s.Authenticated {
		return Caller{}, fmt.Errorf("the API server refuses the token: %.500s", s.Error)
	}
	// An API server that knows nothing of audiences answers with none.
	if !slices.Contains(s.Audiences, a.cfg.Audience) {
		return Caller{}, fmt.Errorf("the API server takes the token for the audiences %.200q, %q is needed", s.Audiences, a.cfg.Audience)
	}
	namespace, name, ok := strings.Cut(strings.TrimPrefix(s.User.Username, accountsPrefix), ":")
	if !ok || !strings.HasPrefix(s.User.Username, accountsPrefix) || !slices.Contains(s.User.Groups, accountsGroup) {
		return Caller{}, fmt.Errorf("%.200q is not a service account", s.User.Username)
	}
	id, err := spiffeid.FromSegments(a.cfg.TrustDomain, "ns", namespace, "sa", name)
	if err != nil {
		return Caller{}, fmt.Errorf("service account %.200q cannot have an identity: %w", s.User.Username, err)
	}
	caller := Caller{Identity: id, Node: extra(s, extraNodeName)}
	if pod := extra(s, extraPodName); pod != "" {
		caller.Pod, caller.PodUID = namespace+"/"+pod, extra(s, extraPodUID)
	}
	return caller, nil
}

// extra is a value that the API server adds, empty unless there is one and only one.
func extra(s *authv1.TokenReviewStatus, key string) string {
	if v := s.User.Extra[key]; len(v) == 1 {
		return v[0]
	}
	return ""
}
