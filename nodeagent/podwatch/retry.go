package podwatch

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	requestTimeout = 10 * time.Second // for one write to the API server
	writesAtOnce   = 4
	firstRetry     = 200 * time.Millisecond
	lastRetry      = 30 * time.Second
)

// job is one thing that is to be written to the API server, until it is or is no
// longer wanted.
type job struct {
	wait   time.Duration
	next   time.Time // not before
	flying bool
}

// due says whether a job may be begun, and if not when.
func (j *job) due(now time.Time) (bool, time.Duration) {
	return !j.flying && !now.Before(j.next), j.next.Sub(now)
}

// done notes how an attempt ended, and when the next one may come.
func (j *job) done(now time.Time, err error, rest time.Duration) {
	j.flying = false
	if err == nil {
		j.wait, j.next = 0, now.Add(rest)
		return
	}
	j.wait = min(max(2*j.wait, firstRetry), lastRetry)
	if s, ok := apierrors.SuggestsClientDelay(err); ok {
		j.wait = min(max(j.wait, time.Duration(s)*time.Second), lastRetry)
	}
	j.next = now.Add(j.wait)
}

// sleep waits for the first of the channels, or so long, and says whether ctx goes
// on.
func sleep(ctx context.Context, d time.Duration, wake ...<-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	var a, b, c <-chan struct{}
	for i, w := range wake {
		*[]*<-chan struct{}{&a, &b, &c}[i] = w
	}
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-a:
	case <-b:
	case <-c:
	}
	return ctx.Err() == nil
}
