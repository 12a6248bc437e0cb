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

// The defaults are for a node of a few hundred pods that starts with all of them at once.
const (
	DefaultRate  = 50
	DefaultBurst = 500
	refusalRate  = 10
	refusalBurst = 100
	maxCallers   = 16384
)

// limits holds the buckets of each caller. Callers are authenticated, so their number is that of nodes and pods; the
// bound is for an authenticator that makes names up. All who are nobody are one caller, the zero value.
type limits struct {
	rate  rate.Limit
	burst int

	mu      sync.Mutex
	callers map[Caller]*buckets
}

// buckets are one caller's: of requests, and of lines in the log about refusals. Guarded by limits.mu, so that what one
// reserves and gives back is not in between another's.
type buckets struct {
	requests, lines *rate.Limiter
	suppressed      int       // lines since the last one
	last            time.Time // that anything was counted at; no time before it is used, for which rate would give credit twice
}

// at is now, or the last time where that is later.
func (b *buckets) at(now time.Time) time.Time {
	if now.After(b.last) {
		b.last = now
	}
	return b.last
}

func newLimits(r float64, burst int) *limits {
	return &limits{rate: rate.Limit(r), burst: burst, callers: map[Caller]*buckets{}}
}

// take counts one request and says how long the caller must wait before it may make it; zero means go on.
func (l *limits) take(c Caller, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.ofLocked(c, now)
	at := b.at(now)
	r := b.requests.ReserveN(at, 1)
	wait := r.DelayFrom(at)
	if wait > 0 {
		r.CancelAt(at)
		wait = max(wait+at.Sub(now), time.Millisecond) // it is told to one whose time is now
	}
	return wait
}

// tell counts a refusal, and says whether it is to be logged, and how many before it were not.
func (l *limits) tell(c Caller, now time.Time) (yes bool, suppressed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.ofLocked(c, now)
	if !b.lines.AllowN(b.at(now), 1) {
		b.suppressed++
		return false, 0
	}
	suppressed, b.suppressed = b.suppressed, 0
	return true, suppressed
}

func (l *limits) ofLocked(c Caller, now time.Time) *buckets {
	b := l.callers[c]
	if b == nil {
		l.makeRoomLocked(now)
		b = &buckets{requests: rate.NewLimiter(l.rate, l.burst), lines: rate.NewLimiter(refusalRate, refusalBurst)}
		l.callers[c] = b
	}
	return b
}

// makeRoomLocked forgets callers that a new bucket would treat the same, or, should there be none, any one.
func (l *limits) makeRoomLocked(now time.Time) {
	if len(l.callers) < maxCallers {
		return
	}
	for c, b := range l.callers {
		if b.requests.TokensAt(now) >= float64(l.burst) && b.lines.TokensAt(now) >= refusalBurst {
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
