package server

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	defaultRate  = 50
	defaultBurst = 500
	refusalRate  = 10
	refusalBurst = 100
	maxCallers   = 16384
)

// limits holds a token bucket for each caller. Callers are authenticated, so their number is that of nodes; the bound
// is for an authenticator that makes names up.
type limits struct {
	rate  rate.Limit
	burst int

	mu      sync.Mutex
	callers map[Caller]*rate.Limiter
}

func newLimits(r float64, burst int) *limits {
	return &limits{rate: rate.Limit(r), burst: burst, callers: map[Caller]*rate.Limiter{}}
}

// take counts one request and says how long the caller must wait before it may make it; zero means go on.
func (l *limits) take(c Caller, now time.Time) time.Duration {
	l.mu.Lock()
	lim := l.callers[c]
	if lim == nil {
		l.makeRoomLocked(now)
		lim = rate.NewLimiter(l.rate, l.burst)
		l.callers[c] = lim
	}
	l.mu.Unlock()
	r := lim.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

// makeRoomLocked forgets callers that a new bucket would treat the same, or, should there be none, any one.
func (l *limits) makeRoomLocked(now time.Time) {
	if len(l.callers) < maxCallers {
		return
	}
	for c, lim := range l.callers {
		if lim.TokensAt(now) >= float64(l.burst) {
			delete(l.callers, c)
		}
	}
	for c := range l.callers {
		if len(l.callers) < maxCallers {
			return
		}
		delete(l.callers, c)
	}
}

func exhausted(wait time.Duration) *status.Status {
	st := status.New(codes.ResourceExhausted, "too many certificate requests")
	with, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	if err != nil {
		return st
	}
	return with
}
