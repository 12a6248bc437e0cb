package kubeauth

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	authv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	authv1client "k8s.io/client-go/kubernetes/typed/authentication/v1"
	"k8s.io/client-go/rest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var td = spiffeid.RequireTrustDomainFromString("td.test")

// jwt is a token with claims and a signature that nobody looks at; the fake API server knows tokens by their text.
func jwt(t testing.TB, claims any) string {
	t.Helper()
	text, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return "e30." + base64.RawURLEncoding.EncodeToString(text) + ".c2ln"
}

func forUs(t testing.TB, n int) string {
	return jwt(t, map[string]any{"aud": []string{"istio-ca"}, "n": n})
}

func with(token string) context.Context {
	return metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Bearer "+token))
}

func at(ctx context.Context, ip string) context.Context {
	return peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}})
}

// ztunnel is the API server's answer for the token of a proxy.
func ztunnel() authv1.TokenReviewStatus {
	return authv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{"istio-ca"},
		User: authv1.UserInfo{
			Username: "system:serviceaccount:warren-system:ztunnel",
			Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:warren-system", "system:authenticated"},
			Extra: map[string]authv1.ExtraValue{
				"authentication.kubernetes.io/pod-name":  {"ztunnel-x"},
				"authentication.kubernetes.io/pod-uid":   {"uid-x"},
				"authentication.kubernetes.io/node-name": {"n1"},
			},
		},
	}
}

// server is an API server that answers reviews with a function. (The client's own fake answers one request at a time.)
type server struct {
	*fake.Clientset
	authv1client.AuthenticationV1Interface
	authv1client.TokenReviewInterface

	asked  atomic.Int64
	answer func(*authv1.TokenReview) (authv1.TokenReviewStatus, error)
}

func (s *server) AuthenticationV1() authv1client.AuthenticationV1Interface { return s }
func (s *server) TokenReviews() authv1client.TokenReviewInterface          { return s }
func (s *server) RESTClient() rest.Interface                               { return nil }

func (s *server) Create(_ context.Context, review *authv1.TokenReview, _ metav1.CreateOptions) (*authv1.TokenReview, error) {
	s.asked.Add(1)
	st, err := s.answer(review)
	return &authv1.TokenReview{Status: st}, err
}

func newServer(answer func(*authv1.TokenReview) (authv1.TokenReviewStatus, error)) *server {
	return &server{Clientset: fake.NewClientset(), answer: answer}
}

func always(st authv1.TokenReviewStatus) *server {
	return newServer(func(*authv1.TokenReview) (authv1.TokenReviewStatus, error) { return st, nil })
}

func authenticator(t testing.TB, s *server) *Authenticator {
	t.Helper()
	a, err := New(Config{Client: s, TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAuthenticate(t *testing.T) {
	but := func(change func(*authv1.TokenReviewStatus)) authv1.TokenReviewStatus {
		st := ztunnel()
		change(&st)
		return st
	}
	proxy := Caller{Node: "n1", Identity: spiffeid.RequireFromPath(td, "/ns/warren-system/sa/ztunnel"), Pod: "warren-system/ztunnel-x", PodUID: "uid-x"}
	for name, c := range map[string]struct {
		answer authv1.TokenReviewStatus
		want   Caller
		err    string
	}{
		"proxy": {ztunnel(), proxy, ""},
		"no node in the token": {but(func(s *authv1.TokenReviewStatus) { delete(s.User.Extra, extraNodeName) }),
			Caller{Identity: proxy.Identity, Pod: proxy.Pod, PodUID: proxy.PodUID}, ""},
		"not bound to a pod":       {but(func(s *authv1.TokenReviewStatus) { s.User.Extra = nil }), Caller{Identity: proxy.Identity}, ""},
		"refused":                  {authv1.TokenReviewStatus{Error: "token expired"}, Caller{}, "refuses the token: token expired"},
		"says no, otherwise right": {but(func(s *authv1.TokenReviewStatus) { s.Authenticated = false }), Caller{}, "refuses the token"},
		"other audience":           {but(func(s *authv1.TokenReviewStatus) { s.Audiences = []string{"api"} }), Caller{}, "audiences"},
		"knows no audiences":       {but(func(s *authv1.TokenReviewStatus) { s.Audiences = nil }), Caller{}, "audiences"},
		"a human":                  {but(func(s *authv1.TokenReviewStatus) { s.User.Username = "eve" }), Caller{}, "not a service account"},
		"named like an account":    {but(func(s *authv1.TokenReviewStatus) { s.User.Groups = []string{"system:authenticated"} }), Caller{}, "not a service account"},
		"no name":                  {but(func(s *authv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:x:" }), Caller{}, "cannot have an identity"},
		"name with a colon":        {but(func(s *authv1.TokenReviewStatus) { s.User.Username += ":a" }), Caller{}, "cannot have an identity"},
		"name with a slash":        {but(func(s *authv1.TokenReviewStatus) { s.User.Username += "/sa/b" }), Caller{}, "cannot have an identity"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := authenticator(t, always(c.answer)).Authenticate(with(forUs(t, 0)))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || status.Code(err) == codes.Unavailable {
					t.Fatalf("%+v, %v, want %q", got, err, c.err)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("%+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}

// What can be told without the API server costs no review.
func TestNotAsked(t *testing.T) {
	s := always(ztunnel())
	a := authenticator(t, s)
	two := metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Bearer x", "authorization", "Bearer y"))
	for name, ctx := range map[string]context.Context{
		"nothing": context.Background(), "two": two, "basic": metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Basic x")),
		"empty": with(" "), "no jwt": with("opaque"), "no base64": with("a.!.c"), "no json": with("a.e3s.c"), "huge": with(strings.Repeat("x", 1<<20)),
		"other audience": with(jwt(t, map[string]any{"aud": "kubernetes"})), "no audience": with(jwt(t, map[string]any{})),
		"odd audience": with(jwt(t, map[string]any{"aud": 7})),
	} {
		if c, err := a.Authenticate(ctx); err == nil || status.Code(err) == codes.Unavailable {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	if n := s.asked.Load(); n != 0 {
		t.Errorf("%d reviews", n)
	}
	if _, err := a.Authenticate(with(jwt(t, map[string]any{"aud": "istio-ca"}))); err != nil {
		t.Errorf("one audience as a text: %v", err)
	}
}

func TestReviewIsForOurAudience(t *testing.T) {
	var got authv1.TokenReviewSpec
	s := newServer(func(r *authv1.TokenReview) (authv1.TokenReviewStatus, error) { got = r.Spec; return ztunnel(), nil })
	token := forUs(t, 0)
	if _, err := authenticator(t, s).Authenticate(with(token)); err != nil {
		t.Fatal(err)
	}
	if got.Token != token || fmt.Sprint(got.Audiences) != "[istio-ca]" {
		t.Errorf("asked for %+v", got)
	}
}

func TestAnswersAreKeptForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := false
		s := newServer(func(*authv1.TokenReview) (authv1.TokenReviewStatus, error) {
			if refuse {
				return authv1.TokenReviewStatus{}, nil
			}
			return ztunnel(), nil
		})
		a := authenticator(t, s)
		ask := func(token string, good bool, asked int64) {
			t.Helper()
			_, err := a.Authenticate(with(token))
			if (err == nil) != good || s.asked.Load() != asked {
				t.Errorf("good %v after %d reviews, want %v after %d (%v)", err == nil, s.asked.Load(), good, asked, err)
			}
		}
		token := forUs(t, 0)
		ask(token, true, 1)
		refuse = true
		ask(token, true, 1) // kept
		time.Sleep(keepGood)
		ask(token, false, 2)
		refuse = false
		ask(token, false, 2) // that, too
		time.Sleep(keepBad)
		ask(token, true, 3)

		// Not longer than the token lives.
		short := jwt(t, map[string]any{"aud": "istio-ca", "exp": time.Now().Add(3 * time.Second).Unix()})
		ask(short, true, 4)
		refuse = true
		time.Sleep(3 * time.Second)
		ask(short, false, 5)
	})
}

func TestApiServerInTrouble(t *testing.T) {
	resource := schema.GroupResource{Group: "authentication.k8s.io", Resource: "tokenreviews"}
	for name, c := range map[string]struct {
		err  error
		text string
	}{
		"down":      {errors.New("connection refused"), "connection refused"},
		"slow down": {apierrors.NewTooManyRequests("later", 1), "later"},
		"forbidden": {apierrors.NewForbidden(resource, "", errors.New("no role")), "allow the control plane's service account to create tokenreviews"},
		"own token": {apierrors.NewUnauthorized("who are you"), "who are you"},
	} {
		s := newServer(func(*authv1.TokenReview) (authv1.TokenReviewStatus, error) { return authv1.TokenReviewStatus{}, c.err })
		a := authenticator(t, s)
		for n := range int64(2) { // it is not kept
			_, err := a.Authenticate(with(forUs(t, 0)))
			st, ok := status.FromError(err)
			if !ok || st.Code() != codes.Unavailable || strings.Contains(st.Message(), c.text) || !strings.Contains(err.Error(), c.text) || s.asked.Load() != n+1 {
				t.Errorf("%s: %v after %d reviews, status %v", name, err, s.asked.Load(), st)
			}
		}
	}
}

func TestOneReviewForAllWhoComeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		s := newServer(func(*authv1.TokenReview) (authv1.TokenReviewStatus, error) { <-hold; return ztunnel(), nil })
		a := authenticator(t, s)
		first, cancel := context.WithCancel(with(forUs(t, 0)))
		var all sync.WaitGroup
		var gone, good atomic.Int64
		all.Go(func() {
			if _, err := a.Authenticate(first); status.Code(err) == codes.Unavailable {
				gone.Add(1)
			}
		})
		synctest.Wait()
		for range 200 {
			all.Go(func() {
				if _, err := a.Authenticate(with(forUs(t, 0))); err == nil {
					good.Add(1)
				}
			})
		}
		synctest.Wait()
		cancel() // the first to come goes away
		synctest.Wait()
		close(hold)
		all.Wait()
		if s.asked.Load() != 1 || gone.Load() != 1 || good.Load() != 200 {
			t.Errorf("%d reviews; %d went away, %d of 200 were let in", s.asked.Load(), gone.Load(), good.Load())
		}
	})
}

// Tokens that somebody makes up hold up neither the proxies of other nodes nor the API server.
func TestStrangersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		good := forUs(t, -1)
		s := newServer(func(r *authv1.TokenReview) (authv1.TokenReviewStatus, error) {
			if r.Spec.Token == good {
				return ztunnel(), nil
			}
			<-hold
			return authv1.TokenReviewStatus{}, nil
		})
		a := authenticator(t, s)
		var all sync.WaitGroup
		var refused atomic.Int64
		for n := range 100 {
			all.Go(func() {
				if _, err := a.Authenticate(at(with(forUs(t, n)), "10.0.0.66")); status.Code(err) == codes.Unavailable {
					refused.Add(1)
				}
			})
		}
		synctest.Wait()
		if n, no := s.asked.Load(), refused.Load(); n != maxPeerWork || no != 100-maxPeerWork {
			t.Errorf("%d reviews for one address, %d refused", n, no)
		}
		if _, err := a.Authenticate(at(with(good), "10.0.0.1")); err != nil {
			t.Errorf("a proxy elsewhere: %v", err)
		}
		close(hold)
		all.Wait()
		if len(a.work.peers) != 0 || len(a.work.slots) != 0 {
			t.Errorf("left: %v, %d slots", a.work.peers, len(a.work.slots))
		}
	})
}

// An API server that hangs costs callers no more than the time of a review, those that wait for a slot included.
func TestHangingApiServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWork(1, 10)
		one, two := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
		if err := w.begin(t.Context(), one); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.begin(ctx, two); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second one: %v", err)
		}
		w.end(one)
		if err := w.begin(t.Context(), two); err != nil || len(w.peers) != 1 {
			t.Errorf("after the first: %v, %v", err, w.peers)
		}
	})
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache[int](10)
	now := time.Now()
	for n := range 1000 {
		c.put(digest{byte(n), byte(n >> 8)}, n, now, now.Add(time.Hour))
	}
	if len(c.entries) > 10 {
		t.Errorf("%d entries", len(c.entries))
	}
	if v, ok := c.get(digest{999 & 0xff, 999 >> 8}, now); !ok || v != 999 {
		t.Error("the latest is not kept")
	}
	c.put(digest{1, 1, 1}, 7, now.Add(2*time.Hour), now.Add(3*time.Hour))
	if len(c.entries) != 1 {
		t.Errorf("%d entries, all but one are out of date", len(c.entries))
	}
}

func TestProxy(t *testing.T) {
	app := ztunnel()
	app.User.Username = "system:serviceaccount:app:ztunnel"
	unbound := ztunnel()
	unbound.User.Extra = nil
	old := ztunnel()
	delete(old.User.Extra, extraNodeName)
	for name, c := range map[string]struct {
		answer    authv1.TokenReviewStatus
		want, err string
	}{
		"proxy": {ztunnel(), "n1", ""}, "old API server": {old, "warren-system/ztunnel-x", ""},
		"an app": {app, "", "app/ztunnel is not the account of a node's proxy"}, "not bound": {unbound, "", "not bound to a pod"},
	} {
		got, err := authenticator(t, always(c.answer)).Proxy(with(forUs(t, 0)))
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestConfig(t *testing.T) {
	if _, err := New(Config{TrustDomain: td}); err == nil {
		t.Error("without a client")
	}
	if _, err := New(Config{Client: fake.NewClientset()}); err == nil {
		t.Error("without a trust domain")
	}
	for _, bad := range []string{"", "a", "/a", "a/", "a/b/c", "A/b", "a b/c"} {
		if got, err := ParseAccounts([]string{bad}); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
	if got, err := ParseAccounts([]string{"a/b", " c/d.e ", "a/b"}); err != nil || fmt.Sprint(got) != "[a/b c/d.e]" {
		t.Errorf("%v, %v", got, err)
	}
}

// Nothing of a token ends up in an error, which is logged.
func TestErrorsHoldNoToken(t *testing.T) {
	secret := []byte("s3cr3t")
	for _, token := range []string{"s3cr3t", "a.s3cr3t!.b", "a." + base64.RawURLEncoding.EncodeToString([]byte(`{"aud": s3cr3t}`)) + ".b", forUs(t, 0) + "s3cr3t"} {
		_, err := authenticator(t, always(authv1.TokenReviewStatus{})).Authenticate(with(token))
		if err == nil || bytes.Contains([]byte(err.Error()), secret) {
			t.Errorf("%q: %v", token, err)
		}
	}
}
