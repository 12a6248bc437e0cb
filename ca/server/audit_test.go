package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	pb "istio.io/api/security/v1alpha1"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/server"
)

// podAuth knows everybody as one pod's proxy, but for those who say that they are nobody.
type podAuth struct{}

func (podAuth) Authenticate(ctx context.Context) (server.Caller, error) {
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("nobody")) > 0 {
		return headerAuth{}.Authenticate(ctx)
	}
	return server.Caller{Node: "node-1", Identity: bob, Pod: "warren-system/ztunnel-1", PodUID: "uid-1"}, nil
}

// lines are those of a log in JSON, without times.
func lines(t *testing.T, log *bytes.Buffer) (out []map[string]any) {
	t.Helper()
	for line := range bytes.Lines(log.Bytes()) {
		var l map[string]any
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatal(err)
		}
		delete(l, "time")
		out = append(out, l)
	}
	return out
}

// Who got, or did not get, what from where: all of it is in one line.
func TestAudit(t *testing.T) {
	var log bytes.Buffer
	a := newAuthority(t)
	s, err := server.New(server.Config{Authority: a, TrustDomain: td, Authenticator: podAuth{}, Authorizer: nodeAuthz{}, Log: slog.New(slog.NewJSONHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	from := peer.NewContext(context.Background(), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4711}})
	resp, err := s.CreateCertificate(from, &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(alice.String()), ValidityDuration: 60})
	if err != nil {
		t.Fatal(err)
	}
	refused := metadata.NewIncomingContext(from, metadata.Pairs("nobody", "1"))
	for _, ask := range []struct {
		ctx context.Context
		id  string
	}{{from, bob.String()}, {from, strings.Repeat("x", 100_000)}, {refused, alice.String()}} {
		if _, err := s.CreateCertificate(ask.ctx, &pb.IstioCertificateRequest{Csr: csr(t, alice), Metadata: want(ask.id)}); err == nil {
			t.Fatal("signed")
		}
	}
	block, _ := pem.Decode([]byte(resp.CertChain[0]))
	serial := authority.Describe(pem.EncodeToMemory(block))
	got := lines(t, &log)
	for _, l := range got {
		delete(l, "err")
	}
	known := func(id string) map[string]any {
		return map[string]any{"level": "WARN", "msg": "certificate refused", "caller": bob.String() + " of pod warren-system/ztunnel-1", "node": "node-1", "pod": "warren-system/ztunnel-1", "pod.uid": "uid-1",
			"src.addr": "192.0.2.7:4711", "id": id, "code": "Unauthenticated", "suppressed": 0.}
	}
	if d := cmp.Diff([]map[string]any{
		{"level": "INFO", "msg": "certificate signed", "caller": bob.String() + " of pod warren-system/ztunnel-1", "node": "node-1", "pod": "warren-system/ztunnel-1", "pod.uid": "uid-1",
			"src.addr": "192.0.2.7:4711", "id": alice.String(), "serial": serial.Serial, "issuer": a.ID(), "expires": serial.NotAfter.Format("2006-01-02T15:04:05Z")},
		known(bob.String()), known(strings.Repeat("x", 256)),
		// Of who is nobody nothing is read, so that it is not known what for.
		{"level": "WARN", "msg": "certificate refused", "caller": "", "node": "", "pod": "", "pod.uid": "", "src.addr": "192.0.2.7:4711", "id": "", "code": "Unauthenticated", "suppressed": 0.},
	}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// One who floods fills neither the log nor hides what others are refused; how much is left out is told.
func TestRefusalsDoNotFlood(t *testing.T) {
	var log bytes.Buffer
	s, err := server.New(server.Config{Authority: newAuthority(t), TrustDomain: td, Authenticator: headerAuth{}, Authorizer: nodeAuthz{}, Burst: 1 << 20,
		Log: slog.New(slog.NewJSONHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	req := &pb.IstioCertificateRequest{Csr: csr(t, bob), Metadata: want(bob.String())}
	const n = 5000
	for _, who := range []context.Context{context.Background(), as("node", "node-1")} {
		for range n {
			if _, err := s.CreateCertificate(who, req); err == nil {
				t.Fatal("signed")
			}
		}
	}
	if _, err := s.CreateCertificate(as("node", "node-2"), req); err == nil {
		t.Fatal("signed")
	}
	told := map[any]int{}
	for _, l := range lines(t, &log) {
		told[l["node"]]++
		told[l["node"]] += int(l["suppressed"].(float64))
	}
	count := bytes.Count(log.Bytes(), []byte("\n"))
	if count > n/2 || told["node-2"] != 1 || told[""] < 100 || told["node-1"] < 100 || told[""] > n || told["node-1"] > n {
		t.Errorf("%d lines; told of %v", count, told)
	}
}
