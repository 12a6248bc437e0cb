package server_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "istio.io/api/security/v1alpha1"

	"github.com/warren-mesh/warren/ca/server"
)

// slowAuth lets nobody in, and takes its time.
type slowAuth struct {
	asked chan struct{}
	let   chan struct{}
}

func (a slowAuth) Authenticate(ctx context.Context) (server.Caller, error) {
	a.asked <- struct{}{}
	select {
	case <-a.let:
	case <-ctx.Done():
	}
	return server.Caller{}, status.Error(codes.Unauthenticated, "nobody")
}

// Nothing is read of what somebody sends before it is known who that is: the rest stays with the sender.
func TestNothingIsReadOfNobody(t *testing.T) {
	auth := slowAuth{make(chan struct{}, 16), make(chan struct{})}
	s, err := server.New(server.Config{Authority: newAuthority(t), TrustDomain: td, Authenticator: auth, Authorizer: nodeAuthz{}})
	if err != nil {
		t.Fatal(err)
	}
	client := dialServer(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := client.CreateCertificate(ctx, &pb.IstioCertificateRequest{Csr: strings.Repeat("x", 3<<20)})
			if status.Code(err) != codes.Unauthenticated {
				t.Errorf("answered by %v", err)
			}
		})
	}
	for range 8 {
		select {
		case <-auth.asked: // although no message can have come: it is larger than a window
		case <-ctx.Done():
			t.Fatal("it is not asked who calls before all of the request is there")
		}
	}
	close(auth.let)
	wg.Wait()
}
