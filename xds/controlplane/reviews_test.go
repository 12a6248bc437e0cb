package controlplane

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// A review of a token, which a certificate waits for, does not wait for what is written.
func TestReviewsHaveARateOfTheirOwn(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","status":{"authenticated":true}}`))
	}))
	t.Cleanup(s.Close)
	c, err := connect(&rest.Config{Host: s.URL, QPS: 1e-6, Burst: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ask := func(c clients) error {
		_, err := c.kubernetes.AuthenticationV1().TokenReviews().Create(ctx, &authv1.TokenReview{}, metav1.CreateOptions{})
		return err
	}
	if err := ask(c); err != nil { // the only one for a long time
		t.Fatal(err)
	}
	if err := ask(c); err == nil {
		t.Fatal("the clients have no rate: nothing is tested")
	}
	for range 3 {
		if err := ask(clients{kubernetes: c.reviews}); err != nil {
			t.Fatal(err)
		}
	}
}
