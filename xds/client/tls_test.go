package client

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/mtls"
)

func newAuthority(t *testing.T) *authority.Authority {
	t.Helper()
	files, err := authority.Create(spiffeid.RequireTrustDomainFromString("cluster.local"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, err := authority.Load(files, authority.Policy{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Roots that are not there yet, or of another mesh, keep the client out until
// they are put right, and the name counts.
func TestTLS(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	cert, err := ours.Serving([]string{"istiod.test"}, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := serveStub(t, l, "https://"+l.Addr().String(),
		grpc.Creds(credentials.NewTLS(mtls.ServerAuth(func() (*tls.Certificate, error) { return cert, nil }))))
	tries := []struct {
		roots func() ([]byte, error)
		name  string
		want  string
	}{
		{func() ([]byte, error) { return nil, errors.New("no roots yet") }, "istiod.test", "no roots yet"},
		{func() ([]byte, error) { return others.RootsPEM(), nil }, "istiod.test", "certificate"},
		{func() ([]byte, error) { return ours.RootsPEM(), nil }, "elsewhere.test", "elsewhere.test"},
		{nil, "", "not configured"},
		{func() ([]byte, error) { return ours.RootsPEM(), nil }, "istiod.test", ""},
	}
	var n atomic.Int32
	var token atomic.Int32
	o := newObserver()
	c, _ := newClient(t, Config{
		Address: s.Address, Observer: o,
		TLS: func() (*tls.Config, error) {
			try := tries[min(int(n.Add(1)), len(tries))-1]
			if try.roots == nil {
				return nil, errors.New(try.want)
			}
			return mtls.ToServer(try.roots, try.name, ""), nil
		},
		Token: func() (string, error) { token.Add(1); return "t", nil },
	})
	for _, try := range tries {
		if try.want == "" {
			continue
		}
		if _, err := c.attempt(t.Context()); err == nil || !strings.Contains(err.Error(), try.want) {
			t.Errorf("%v, want %q", err, try.want)
		}
	}
	run(t, c)
	x, _, _ := s.subscribed()
	x.push(response(AddressType, "1"))
	if got := int(token.Load()); got != len(tries) {
		t.Errorf("the token was read %d times in %d attempts", got, len(tries))
	}
}
