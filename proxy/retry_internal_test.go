package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/route"
)

// TestLeftBecause: which errors are for another endpoint to mend.
func TestLeftBecause(t *testing.T) {
	dst := netip.MustParseAddrPort("10.0.0.1:15008")
	dial := func(errno syscall.Errno) error {
		return fmt.Errorf("sockopt: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)})
	}
	late := &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	tlsError := func(err error) error { return tunnelError(dst, &hbone.TLSError{Peer: "x", Err: err}) }
	connect := func(err error) error { return tunnelError(dst, &hbone.ConnectError{Dst: dst, Err: err}) }
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"refused", &upstreamError{dial(syscall.ECONNREFUSED)}, "refused"},
		{"tunnel refused", connect(dial(syscall.ECONNREFUSED)), "refused"},
		{"tunnel reset", connect(dial(syscall.ECONNRESET)), "refused"},
		{"no host", connect(dial(syscall.EHOSTUNREACH)), "unreachable"},
		{"no network", &upstreamError{dial(syscall.ENETUNREACH)}, "unreachable"},
		{"no answer", &upstreamError{late}, "timeout"},
		{"no answer of a tunnel", connect(late), "timeout"},
		{"left for another", tunnelError(dst, errUnanswered), "timeout"},
		{"left since it was silent", tunnelError(dst, errSilent), "timeout"},
		{"left for another, plaintext", &upstreamError{&net.OpError{Op: "dial", Err: errUnanswered}}, "timeout"},
		{"no answer to CONNECT", fmt.Errorf("hbone: no answer to CONNECT: %w after 20s", hbone.ErrTimeout), "timeout"},
		{"handshake without end", tlsError(fmt.Errorf("handshake not finished: %w", hbone.ErrTimeout)), "timeout"},
		{"502", &hbone.StatusError{Code: 502}, "unavailable"},
		{"503", &hbone.StatusError{Code: 503}, "unavailable"},
		{"504", &hbone.StatusError{Code: 504}, "unavailable"},
		{"handshake broken off", tlsError(dial(syscall.ECONNRESET)), "tls"},
		{"the peer's own trouble", tlsError(&net.OpError{Op: "remote error", Err: tls.AlertError(80)}), "tls"},
		{"somebody else", tlsError(&mtls.VerifyError{Reason: errors.New("peer did not present the expected SAN")}), "identity"},
		{"tunnel lost", &hbone.TunnelError{Err: net.ErrClosed}, "lost"},
		{"stream reset", &hbone.ResetError{Code: http2.ErrCodeInternal}, "lost"},

		{"denied", &hbone.StatusError{Code: 401}, ""},
		{"forbidden", &hbone.StatusError{Code: 403}, ""},
		{"bad request", &hbone.StatusError{Code: 400}, ""},
		{"too many requests", &hbone.StatusError{Code: 429}, ""},
		{"our certificate is not trusted", tlsError(&net.OpError{Op: "remote error", Err: tls.AlertError(48)}), ""},
		{"our certificate has ended", &hbone.TunnelError{Err: &net.OpError{Op: "remote error", Err: tls.AlertError(45)}}, ""},
		{"no certificate of our own", tunnelError(dst, &hbone.ConnectError{Dst: dst, Err: &identityError{errors.New("CA")}}), ""},
		{"our own handshakes are too many", tlsError(hbone.ErrBusy), ""},
		{"our own descriptors", fmt.Errorf("%w: 1 of 1", errFull), ""},
		{"our own ports", &upstreamError{dial(syscall.EADDRNOTAVAIL)}, ""},
		{"behind a gateway", &behindError{&hbone.StatusError{Code: 503}}, "unavailable"},
		{"no answer from behind a gateway", &behindError{errSilent}, "timeout"},
		{"broken off behind a gateway", &behindError{tlsError(dial(syscall.ECONNRESET))}, "tls"},
		{"denied behind a gateway", &behindError{&hbone.StatusError{Code: 401}}, ""},
		{"somebody else behind a gateway", &behindError{tlsError(&mtls.VerifyError{Reason: errors.New("expected SAN")})}, ""},
		{"drain", errDrain, ""},
		{"policy", errPolicyChange, ""},
		{"the client left", context.Canceled, ""},
	} {
		if got := leftBecause(tt.err); got != tt.want {
			t.Errorf("%s: %q, want %q (%v)", tt.name, got, tt.want, tt.err)
		}
	}
}

func endpointNo(i int) route.Endpoint {
	return route.Endpoint{UID: fmt.Sprint(i), Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Port: 80}
}

func TestRestingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r resting
		if r.reports(everybody) != nil {
			t.Error("something rests from the beginning")
		}
		rests := func(i int) bool { f := r.reports(everybody); return f != nil && f(endpointNo(i)) }
		r.add(endpointNo(1), everybody)
		time.Sleep(restTime - time.Second)
		r.add(endpointNo(2), everybody)
		if !rests(1) || !rests(2) || rests(3) || r.len() != 2 {
			t.Error("they do not rest", r.len())
		}
		time.Sleep(time.Second)
		if rests(1) || !rests(2) || r.len() != 1 {
			t.Error("one rests too long, or the other too little")
		}
		r.add(endpointNo(1), everybody) // it failed again
		time.Sleep(restTime - time.Second)
		if !rests(1) || rests(2) {
			t.Error("one that fails again does not rest again")
		}
		time.Sleep(time.Second)
		if r.reports(everybody) != nil || r.len() != 0 {
			t.Error("a memory of what is over")
		}
		r.add(endpointNo(3), everybody)
		if got := len(r.list.Load().until); got != 1 {
			t.Errorf("%d are kept, want 1", got)
		}
		r.wake(endpointNo(3), everybody)
		r.wake(endpointNo(4), everybody)
		if rests(3) {
			t.Error("what took a connection still rests")
		}
	})
}

// What one account finds of an endpoint is nobody else's matter until another one finds it.
func TestRestingByAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := account{"ns", "a"}, account{"ns", "b"}, account{"other", "a"}
		var r resting
		check := func(when string, want ...account) {
			t.Helper()
			for _, of := range []account{a, b, c} {
				f := r.reports(of)
				if rests := f != nil && f(endpointNo(1)); rests != slices.Contains(want, of) {
					t.Errorf("%s it rests for %v: %v", when, of, rests)
				}
			}
			if want := min(1, len(want)); r.len() != want {
				t.Errorf("%s %d rest, want %d", when, r.len(), want)
			}
		}
		again := func(of account) {
			r.add(endpointNo(1), of)
			time.Sleep(restTime / 2)
			r.add(endpointNo(1), of)
		}
		again(a)
		check("after one has found it,", a)
		r.wake(endpointNo(1), b)
		check("when another one reaches it,", a)
		again(b)
		check("after another one has,", a, b, c)
		time.Sleep(restTime / 2)
		r.add(endpointNo(1), a)
		time.Sleep(restTime / 2)
		again(a) // goes on, and is alone again
		check("when the other has got over it,", a)
		r.wake(endpointNo(1), a)
		check("when it takes one,")
		r.add(endpointNo(1), everybody)
		check("when it says so itself,", a, b, c)
		r.wake(endpointNo(1), c)
		check("when it takes another one,")
	})
}

// The network may be what keeps an account's pods from an endpoint; what comes from the
// endpoint is for all to know.
func TestRestIsForWhomItConcerns(t *testing.T) {
	unreachable := &upstreamError{&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}}
	for _, tt := range []struct {
		err      error
		everyone bool
	}{
		{errUnanswered, false}, {unreachable, false}, {&blockedError{err: errUnanswered}, false}, {context.DeadlineExceeded, false},
		{errSilent, true}, {&hbone.TLSError{Err: hbone.ErrTimeout}, true}, {&hbone.StatusError{Code: 503}, true},
		{&upstreamError{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}}, true}, {&mtls.VerifyError{}, true},
	} {
		a := newAbroad(t)
		c, d := begun(t, a)
		c.elsewhere(d, tt.err)
		rests := func(of account) bool {
			f := a.server.resting.reports(of)
			return f != nil && f(guilty(d, leftBecause(tt.err)))
		}
		if mine, yours := rests(a.pod.account()), rests(account{"x", "y"}); !mine || yours != tt.everyone {
			t.Errorf("%v: rests for the pod %v, for others %v, want %v", tt.err, mine, yours, tt.everyone)
		}
	}
}

func TestRestingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r resting
		for i := range maxResting + 100 {
			r.add(endpointNo(i), everybody)
			time.Sleep(time.Millisecond)
		}
		if got := len(r.list.Load().until); got != maxResting {
			t.Errorf("%d are kept, want %d", got, maxResting)
		}
		f := r.reports(everybody)
		for i := range maxResting + 100 {
			if f(endpointNo(i)) != (i >= 100) {
				t.Fatalf("endpoint %d: not the first ones were forgotten", i)
			}
		}
	})
}

func TestRestingInParallel(t *testing.T) {
	var r resting
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				r.add(endpointNo(j%50), everybody)
				if f := r.reports(everybody); f != nil {
					f(endpointNo(j))
				}
				if i%2 == 0 {
					r.wake(endpointNo(j%50), everybody)
				}
			}
		})
	}
	wg.Wait()
}

// A connect that was given up does not end the one that came after it.
func TestConnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c connects
		k := hbone.Key{Dst: netip.MustParseAddrPort("10.0.0.1:15008")}
		connecting := c.of(k)
		if _, yes := connecting(); yes {
			t.Error("connecting from the beginning")
		}
		first := c.begin(k)
		time.Sleep(time.Second)
		second := c.begin(k)
		first()
		if at, yes := connecting(); !yes || time.Since(at) != 0 {
			t.Errorf("connecting since %v: %v", at, yes)
		}
		second()
		if _, yes := connecting(); yes || len(c.m) != 0 {
			t.Error("still connecting")
		}
	})
}

func TestDryRunNamesAreBounded(t *testing.T) {
	s := nameSet{max: 2, m: make(map[string]struct{})}
	var got []string
	for _, n := range []string{"a", "b", "c", "a", "d"} {
		got = append(got, s.bounded(n))
	}
	if fmt.Sprint(got) != "[a b  a ]" {
		t.Errorf("%q", got)
	}
}
