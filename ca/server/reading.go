package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "istio.io/api/security/v1alpha1"
)

const (
	// DefaultReadTimeout is for a request of a few KiB, which clients send at once.
	DefaultReadTimeout = 5 * time.Second
	maxReadingOne      = 2
	maxReadingAll      = 128
)

var errSlow = errors.New("the request did not come in time")

// reading bounds the requests that are being read. All that has come of one is kept until the rest has, up to the size
// that the server takes for any of its services, of which a request for a certificate is a hundredth. Any pod is
// somebody, and may leave out the last byte.
type reading struct {
	all chan struct{}

	mu  sync.Mutex
	one map[Caller]*place // of those who read or wait to
}

type place struct {
	taken chan struct{}
	users int // guarded by reading.mu
}

func newReading() *reading {
	return &reading{all: make(chan struct{}, maxReadingAll), one: map[Caller]*place{}}
}

// enter waits for a place among those of a caller and among those of all.
func (r *reading) enter(ctx context.Context, c Caller) (leave func(), err error) {
	r.mu.Lock()
	p := r.one[c]
	if p == nil {
		p = &place{taken: make(chan struct{}, maxReadingOne)}
		r.one[c] = p
	}
	p.users++
	r.mu.Unlock()
	forget := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if p.users--; p.users == 0 {
			delete(r.one, c)
		}
	}
	select {
	case p.taken <- struct{}{}:
	case <-ctx.Done():
		forget()
		return nil, ctx.Err()
	}
	select {
	case r.all <- struct{}{}:
	case <-ctx.Done():
		<-p.taken
		forget()
		return nil, ctx.Err()
	}
	return func() {
		<-r.all
		<-p.taken
		forget()
	}, nil
}

// receive has a caller's request read, if it comes in time. An error is for who has gone, or sends what is no request.
func (s *Server) receive(ctx context.Context, c Caller, read func() (*pb.IstioCertificateRequest, error)) (*pb.IstioCertificateRequest, *refusal, error) {
	inTime, cancel := context.WithTimeout(ctx, s.cfg.ReadTimeout)
	defer cancel()
	type message struct {
		req *pb.IstioCertificateRequest
		err error
	}
	came := make(chan message, 1)
	leave, err := s.reading.enter(inTime, c)
	if err == nil {
		go func() { // until the stream ends, at the latest: that is when we return
			defer leave()
			req, err := read()
			came <- message{req, err}
		}()
		select {
		case m := <-came:
			return m.req, nil, m.err
		case <-inTime.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, status.FromContextError(err).Err()
	}
	return nil, refuse(codes.DeadlineExceeded, errSlow.Error(), errSlow), nil
}
