package kubeauth

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Over HTTP, as an API server is reached: one that answers, and one that takes the request and does not.
func TestOverHTTP(t *testing.T) {
	gone := make(chan struct{})
	hang := false
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review authv1.TokenReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil || r.Method != http.MethodPost || r.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews" {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		if hang {
			<-r.Context().Done()
			close(gone)
			return
		}
		review.TypeMeta = metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"}
		review.Status = ztunnel()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		if err := json.NewEncoder(w).Encode(review); err != nil {
			t.Error(err)
		}
	}))
	defer s.Close()
	// Without a pool of connections, whose goroutines would outlive the test.
	client, err := kubernetes.NewForConfig(&rest.Config{Host: s.URL, Transport: &http.Transport{DisableKeepAlives: true},
		ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{Client: client, TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := a.Authenticate(with(forUs(t, 0))); err != nil || c != proxyN1 {
		t.Fatalf("%+v, %v", c, err)
	}
	hang = true
	a.cfg.Timeout = 50 * time.Millisecond
	if _, err := a.Authenticate(with(forUs(t, 1))); status.Code(err) != codes.Unavailable {
		t.Fatalf("from one that hangs: %v", err)
	}
	<-gone // the request is given up as well
}
