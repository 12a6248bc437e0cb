package server

import (
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

// Who connects and asks for nothing does not stay, whatever pings are answered.
func TestIdleConnectionEnds(t *testing.T) {
	g := grpc.NewServer(serverOptions(50 * time.Millisecond)...)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close(); g.Stop(); <-done })
	cc.Connect()
	for seen, now := false, cc.GetState(); ; now = cc.GetState() { // READY, and then IDLE again
		if seen = seen || now == connectivity.Ready; seen && now == connectivity.Idle {
			return
		}
		if !cc.WaitForStateChange(t.Context(), now) {
			t.Fatalf("the connection is %s for good", now)
		}
	}
}
