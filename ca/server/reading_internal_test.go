package server

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	pb "istio.io/api/security/v1alpha1"
)

// Of all callers together 128 requests are read at once, and what has its place when the time of those is over is served.
func TestFewAreReadOfAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{cfg: Config{ReadTimeout: DefaultReadTimeout}, reading: newReading()}
		var mu sync.Mutex
		now, most, served := 0, 0, 0
		call := func(node int, takes time.Duration) (*pb.IstioCertificateRequest, *refusal) {
			ctx, cancel := context.WithCancel(t.Context()) // the stream's
			defer cancel()
			req, no, err := s.receive(ctx, Caller{Node: "node-" + strconv.Itoa(node)}, func() (*pb.IstioCertificateRequest, error) {
				mu.Lock()
				now++
				most = max(most, now)
				mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(takes):
				}
				mu.Lock()
				now--
				mu.Unlock()
				return &pb.IstioCertificateRequest{}, ctx.Err()
			})
			if err != nil {
				t.Error(err)
			}
			return req, no
		}
		for n := range 65 * 2 {
			go func() {
				if req, no := call(n/2, time.Hour); req != nil || no == nil || no.answer.Code() != codes.DeadlineExceeded {
					t.Errorf("a request that does not end: %v", no)
				}
			}()
		}
		state := func() (int, int, int) {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return now, most, served
		}
		if now, _, _ := state(); now != 128 {
			t.Errorf("%d requests are read at once", now)
		}
		time.Sleep(4 * time.Second)
		for n := range 200 {
			go func() {
				if req, no := call(100+n, time.Millisecond); req == nil {
					t.Errorf("one that came after them: %v", no)
					return
				}
				mu.Lock()
				served++
				mu.Unlock()
			}()
		}
		if now, _, served := state(); now != 128 || served != 0 {
			t.Errorf("%d requests are read at once, %d of those that came later", now, served)
		}
		time.Sleep(1100 * time.Millisecond)
		if now, most, served := state(); most != 128 || now != 0 || served != 200 {
			t.Errorf("%d were read at once, %d are, %d have come since", most, now, served)
		}
		if len(s.reading.one) != 0 || len(s.reading.all) != 0 {
			t.Errorf("places of %d callers and %d of all are held", len(s.reading.one), len(s.reading.all))
		}
	})
}
