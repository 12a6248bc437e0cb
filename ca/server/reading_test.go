package server_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	pb "istio.io/api/security/v1alpha1"

	"github.com/warren-mesh/warren/ca/server"
)

// dribbler opens calls whose messages never end.
type dribbler struct {
	t       *testing.T
	client  *http.Client
	url     string
	entered atomic.Int32 // of them, those whose bytes the server took, a window aside
}

func newDribbler(t *testing.T, address string) *dribbler {
	var only http.Protocols
	only.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &only}
	t.Cleanup(tr.CloseIdleConnections)
	return &dribbler{t: t, client: &http.Client{Transport: tr}, url: "http://" + address + "/istio.v1.auth.IstioCertificateService/CreateCertificate"}
}

const claimed = 4 << 20

// call sends all but the last byte of a message, and returns how gRPC ended it.
func (d *dribbler) call(ctx context.Context, node string) (grpcStatus string, err error) {
	r, w := io.Pipe()
	defer r.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, r)
	if err != nil {
		return "", err
	}
	req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "Node": {node}}
	go func() {
		head := make([]byte, 5)
		binary.BigEndian.PutUint32(head[1:], claimed)
		_, _ = w.Write(head)
		for range claimed/(1<<16) - 1 {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
		d.entered.Add(1)
	}()
	resp, err := d.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return "", err
	}
	if s := resp.Header.Get("Grpc-Status"); s != "" {
		return s, nil
	}
	return resp.Trailer.Get("Grpc-Status"), nil
}

// listening is a server with a client for it.
func listening(t *testing.T, timeout time.Duration) (d *dribbler, client pb.IstioCertificateServiceClient) {
	s, err := server.New(server.Config{Authority: newAuthority(t), TrustDomain: td, Authenticator: headerAuth{}, Authorizer: nodeAuthz{}, ReadTimeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	client, address := dialServerAt(t, s, grpc.MaxRecvMsgSize(claimed))
	return newDribbler(t, address), client
}

// sign is a call that is as it should be.
func sign(t *testing.T, client pb.IstioCertificateServiceClient, node string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "node", node), time.Minute)
	defer cancel()
	_, err := client.CreateCertificate(ctx, &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String())})
	return err
}

// Of requests that do not end the server takes few of one caller, whatever it is sent, and others are served meanwhile.
func TestFewAreReadOfOneCaller(t *testing.T) {
	d, client := listening(t, time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 32)
	for range cap(ended) {
		go func() { _, err := d.call(ctx, "node-2"); ended <- err }()
	}
	for end := time.Now().Add(time.Minute); d.entered.Load() < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the server takes %d requests of a caller at once", d.entered.Load())
		}
	}
	for range 20 {
		if err := sign(t, client, "node-1"); err != nil {
			t.Fatal(err)
		}
	}
	if n := d.entered.Load(); n > 2 {
		t.Errorf("%d requests of one caller are kept", n)
	}
	cancel()
	for range cap(ended) {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	if err := sign(t, client, "node-1"); err != nil {
		t.Fatal(err)
	}
}

// A request that does not come in time ends, though its connection goes on, and its place is another's.
func TestARequestHasItsTime(t *testing.T) {
	d, client := listening(t, 200*time.Millisecond)
	for range 3 { // one after the other in the same places
		for range 4 {
			go func() { _, _ = d.call(t.Context(), "node-1") }()
		}
		switch got, err := d.call(t.Context(), "node-1"); {
		case err != nil:
			t.Fatal(err)
		case got != "4": // DEADLINE_EXCEEDED
			t.Errorf("ended with %q", got)
		}
	}
	for end := time.Now().Add(time.Minute); ; {
		err := sign(t, client, "node-1") // it may have to wait for those
		if err == nil {
			return
		}
		if status.Code(err) != codes.DeadlineExceeded || strings.Contains(err.Error(), "context") || time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
